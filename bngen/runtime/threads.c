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

/* A loop without a number of tasks of its own is cut into some shares a thread. Each thread runs its
 * own, one after the other, and then those that others have not begun: a thread that the system
 * keeps waiting does not hold up the rest. Which thread runs a share changes no result. */
enum { SHARES = 16, SHARES_OF_MANY = 4, MANY_THREADS = 8, CACHE_LINE = 64 };

typedef struct {
  _Alignas(CACHE_LINE) atomic_int taken; /* shares of one thread that somebody has begun */
} Pile;

typedef struct {
  FTVMParallelLambda lambda;
  void *cdata;
  int num_task; /* 0: as many as there are shares */
  int shares;   /* of each thread */
  Pile *piles;  /* one for each thread */
  atomic_int failed;
} Launch;

/* Tasks `first`, `first + team`, ... on the calling thread; nonzero if one of them failed. */
static int run_tasks(Launch *launch, int first, int team) {
  TVMParallelGroupEnv env = {&team, launch->num_task ? launch->num_task : team};
  int status = 0;
  for (int task = first; task < env.num_task && !status; task += team)
    status = launch->lambda(task, &env, launch->cdata);
  return status;
}

/* The calling thread's shares, then what is left of the others'. */
static int run_shares(Launch *launch, int me, int team) {
  TVMParallelGroupEnv env = {&team, launch->shares * team};
  int status = 0;
  for (int i = 0; i < team; i++) {
    int owner = (me + i) % team;
    atomic_int *taken = &launch->piles[owner].taken;
    while (!status && atomic_load_explicit(taken, memory_order_relaxed) < launch->shares) {
      int share = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
      if (share < launch->shares)
        status = launch->lambda(owner * launch->shares + share, &env, launch->cdata);
    }
  }
  return status;
}

/* The part of thread `me` of a team; nonzero if it failed. */
static int run(Launch *launch, int me, int team) {
  int outer = inside;
  inside = 1;
  int status = launch->piles ? run_shares(launch, me, team) : run_tasks(launch, me, team);
  inside = outer;
  return status;
}

static void run_in_team(void *data) {
  Launch *launch = data;
  int me = openmp.thread_num();
  /* Bit 0: somebody failed. Bit 1: the caller did, and its error is already set. */
  if (run(launch, me, openmp.num_threads())) atomic_fetch_or(&launch->failed, me == 0 ? 3 : 1);
}

int TVMBackendParallelLaunch(FTVMParallelLambda lambda, void *cdata, int num_task) {
  Launch launch = {.lambda = lambda, .cdata = cdata, .num_task = num_task};
  int threads = bngen_num_threads();
  if (num_task > 0 && num_task < threads) threads = num_task;
  /* A parallel loop inside a parallel loop runs on the thread that meets it. */
  if (threads <= 1 || inside) return run(&launch, 0, 1) ? -1 : 0;
  Pile piles[threads];
  if (!num_task) {
    for (int i = 0; i < threads; i++) atomic_init(&piles[i].taken, 0);
    launch.piles = piles;
    launch.shares = threads > MANY_THREADS ? SHARES_OF_MANY : SHARES;
  }
  atomic_store_explicit(&ever_parallel, 1, memory_order_relaxed);
  openmp.parallel(run_in_team, &launch, (unsigned)threads, 0);
  int failed = atomic_load(&launch.failed);
  /* A worker's error lies in the worker's own thread-local slot; the caller needs one in its own. */
  if (failed == 1) openmp.raise_error("RuntimeError", "a task of a parallel loop failed");
  return failed ? -1 : 0;
}

/* Only where each task has a thread of its own, which shares have not; bngen's kernels need none. */
int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv) {
  int team = *(int *)penv->sync_handle;
  (void)task_id;
  if (penv->num_task == 1) return 0;
  if (team == penv->num_task) return openmp.barrier(), 0;
  openmp.raise_error("RuntimeError", "a parallel loop with a barrier got fewer threads than tasks");
  return -1;
}
