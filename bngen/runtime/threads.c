/* TVM's parallel loops on an OpenMP runtime that is already in the process.
 *
 * In: the addresses of a few OpenMP entry points (bngen_bind), then calls from compiled kernels.
 * Out: TVMBackendParallelLaunch and TVMBackendParallelBarrier as c_backend_api.h declares them.
 *
 * The entry points are passed in rather than linked: PyTorch brings its own libgomp, under varying
 * names, and a second copy would be a second pool of threads that fights the first for the CPUs.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

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
static _Thread_local int tried_threads = 1;  /* the largest team that is known to start here */
static _Thread_local int most_threads = 0;   /* the largest that does, once one did not; 0: any */
static size_t worker_stack = 0;              /* what OMP_STACKSIZE asks for; 0: the system's */

void bngen_bind(void *parallel, void *barrier, void *thread_num, void *num_threads,
                void *raise_error) {
  *(void **)&openmp.parallel = parallel;
  *(void **)&openmp.barrier = barrier;
  *(void **)&openmp.thread_num = thread_num;
  *(void **)&openmp.num_threads = num_threads;
  *(void **)&openmp.raise_error = raise_error;
}

void bngen_set_worker_stack(size_t nbytes) { worker_stack = nbytes; }

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
enum { SHARES = 16, SHARES_OF_MANY = 4, MANY_THREADS = 8, FEW_THREADS = 64, CACHE_LINE = 64 };

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

/* Whether a team can start, which has to be known before: an OpenMP runtime that gets no thread ends
 * the process, and a worker with less stack than a kernel's tiles take is a segmentation fault. */
enum { KERNEL_STACK = 512 << 10 };

static void say_once(const char *why, int threads) {
  static atomic_int said = 0;
  if (!atomic_exchange(&said, 1))
    fprintf(stderr, "bngen: kernels run on %d thread%s here: %s\n", threads,
            threads == 1 ? "" : "s", why);
}

typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t opened;
  int open;
} Gate;

static void *stay(void *where) {
  Gate *gate = where;
  pthread_mutex_lock(&gate->lock);
  while (!gate->open) pthread_cond_wait(&gate->opened, &gate->lock);
  pthread_mutex_unlock(&gate->lock);
  return 0;
}

/* How many of `wanted` more threads the system gives, all at once; they are gone on return. */
static int startable(int wanted) {
  Gate gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
  pthread_t *threads = malloc((size_t)wanted * sizeof *threads);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  int started = 0;
  if (threads && (!worker_stack || !pthread_attr_setstacksize(&attributes, worker_stack)))
    while (started < wanted && !pthread_create(&threads[started], &attributes, stay, &gate))
      started++;
  pthread_mutex_lock(&gate.lock);
  gate.open = 1;
  pthread_cond_broadcast(&gate.opened);
  pthread_mutex_unlock(&gate.lock);
  for (int i = 0; i < started; i++) pthread_join(threads[i], 0);
  pthread_attr_destroy(&attributes);
  free(threads);
  return started;
}

static void measure_stack(void *smallest) {
  size_t size = SIZE_MAX;
#ifdef __linux__
  pthread_attr_t attributes;
  void *low;
  if (openmp.thread_num() && !pthread_getattr_np(pthread_self(), &attributes)) {
    pthread_attr_getstack(&attributes, &low, &size);
    pthread_attr_destroy(&attributes);
  }
#endif
  _Atomic size_t *least = smallest;
  size_t known = atomic_load(least);
  while (size < known && !atomic_compare_exchange_weak(least, &known, size)) {
  }
}

/* The team that a loop for `threads` gets on this thread. */
static int team_for(int threads) {
  if (threads > tried_threads && !most_threads) {
    int more = threads - tried_threads;
    int started = startable(more);
    if (started < more) {
      most_threads = tried_threads + started / 2; /* leave some to others */
      say_once("the system starts no more", most_threads);
    } else {
      _Atomic size_t least = SIZE_MAX;
      openmp.parallel(measure_stack, (void *)&least, (unsigned)threads, 0);
      atomic_store_explicit(&ever_parallel, 1, memory_order_relaxed);
      if (atomic_load(&least) < KERNEL_STACK) {
        most_threads = 1;
        say_once("threads have less than 512 KiB of stack (see OMP_STACKSIZE, ulimit -s)", 1);
      }
      tried_threads = threads;
    }
  }
  return most_threads && threads > most_threads ? most_threads : threads;
}

int TVMBackendParallelLaunch(FTVMParallelLambda lambda, void *cdata, int num_task) {
  Launch launch = {.lambda = lambda, .cdata = cdata, .num_task = num_task};
  int threads = bngen_num_threads();
  if (num_task > 0 && num_task < threads) threads = num_task;
  /* A parallel loop inside a parallel loop runs on the thread that meets it. */
  if (threads > 1 && !inside) threads = team_for(threads);
  if (threads <= 1 || inside) return run(&launch, 0, 1) ? -1 : 0;
  Pile few[FEW_THREADS];
  Pile *many = threads > FEW_THREADS ? aligned_alloc(CACHE_LINE, threads * sizeof(Pile)) : 0;
  Pile *piles = many ? many : few;
  if (threads > FEW_THREADS && !many) threads = FEW_THREADS;
  if (!num_task) {
    for (int i = 0; i < threads; i++) atomic_init(&piles[i].taken, 0);
    launch.piles = piles;
    launch.shares = threads > MANY_THREADS ? SHARES_OF_MANY : SHARES;
  }
  atomic_store_explicit(&ever_parallel, 1, memory_order_relaxed);
  openmp.parallel(run_in_team, &launch, (unsigned)threads, 0);
  free(many);
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
