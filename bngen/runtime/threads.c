/* TVM's parallel loops on an OpenMP runtime that is already in the process.
 *
 * In: the addresses of a few OpenMP entry points (bngen_bind), then calls from compiled kernels.
 * Out: TVMBackendParallelLaunch and TVMBackendParallelBarrier as c_backend_api.h declares them.
 *
 * The entry points are passed in rather than linked: PyTorch brings its own libgomp, under varying
 * names, and a second copy would be a second pool of threads that fights the first for the CPUs.
 */
#include <stdatomic.h>
#include <stdint.h>

typedef struct {
  void *sync_handle;
  int32_t num_task;
} TVMParallelGroupEnv;

typedef int (*FTVMParallelLambda)(int task_id, TVMParallelGroupEnv *penv, void *cdata);

static struct {
  void (*parallel)(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags);
  void (*barrier)(void);
  int (*thread_num)(void);
  int (*num_threads)(void);
  void (*raise_error)(const char *kind, const char *message);
} openmp;

static atomic_int default_threads = 1;
static atomic_int ever_parallel = 0;
static atomic_int forked = 0;
static _Thread_local int chosen_threads = 0; /* 0: the default */
static _Thread_local int inside = 0;         /* this thread is running a task */

void bngen_bind(void *parallel, void *barrier, void *thread_num, void *num_threads,
                void *raise_error) {
  *(void **)&openmp.parallel = parallel;
  *(void **)&openmp.barrier = barrier;
  *(void **)&openmp.thread_num = thread_num;
  *(void **)&openmp.num_threads = num_threads;
  *(void **)&openmp.raise_error = raise_error;
}

void bngen_set_default_threads(int count) { atomic_store(&default_threads, count); }

/* Sets the calling thread's own count and returns the one before; 0 stands for the default. */
int bngen_use_threads(int count) {
  int before = chosen_threads;
  chosen_threads = count;
  return before;
}

int bngen_num_threads(void) {
  if (atomic_load(&forked)) return 1;
  return chosen_threads ? chosen_threads : atomic_load(&default_threads);
}

int bngen_ever_parallel(void) { return atomic_load(&ever_parallel); }

/* The threads of the parent's pool do not exist in a forked child, and libgomp waits for them. */
void bngen_after_fork(void) { atomic_store(&forked, 1); }

typedef struct {
  FTVMParallelLambda lambda;
  void *cdata;
  int num_task; /* 0: as many as there are threads */
  atomic_int failed;
} Launch;

/* Tasks `first`, `first + team`, ... on the calling thread; nonzero if one of them failed. */
static int run_share(Launch *launch, int first, int team) {
  TVMParallelGroupEnv env = {&team, launch->num_task ? launch->num_task : team};
  int outer = inside, status = 0;
  inside = 1;
  for (int task = first; task < env.num_task && !status; task += team)
    status = launch->lambda(task, &env, launch->cdata);
  inside = outer;
  return status;
}

static void run_in_team(void *data) {
  Launch *launch = data;
  int me = openmp.thread_num();
  /* Bit 0: somebody failed. Bit 1: the caller did, and its error is already set. */
  if (run_share(launch, me, openmp.num_threads())) atomic_fetch_or(&launch->failed, me == 0 ? 3 : 1);
}

int TVMBackendParallelLaunch(FTVMParallelLambda lambda, void *cdata, int num_task) {
  Launch launch = {lambda, cdata, num_task, 0};
  int threads = bngen_num_threads();
  if (num_task > 0 && num_task < threads) threads = num_task;
  /* A parallel loop inside a parallel loop runs on the thread that meets it. */
  if (threads <= 1 || inside) return run_share(&launch, 0, 1) ? -1 : 0;
  atomic_store_explicit(&ever_parallel, 1, memory_order_relaxed);
  openmp.parallel(run_in_team, &launch, (unsigned)threads, 0);
  int failed = atomic_load(&launch.failed);
  /* A worker's error lies in the worker's own thread-local slot; the caller needs one in its own. */
  if (failed == 1) openmp.raise_error("RuntimeError", "a task of a parallel loop failed");
  return failed ? -1 : 0;
}

int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv) {
  int team = *(int *)penv->sync_handle;
  (void)task_id;
  if (penv->num_task == 1) return 0;
  if (team == penv->num_task) return openmp.barrier(), 0;
  openmp.raise_error("RuntimeError", "a parallel loop with a barrier got fewer threads than tasks");
  return -1;
}
