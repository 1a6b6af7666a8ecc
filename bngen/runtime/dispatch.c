/* A sequence of kernel calls without an interpreter between them.
 *
 * In: calls with TVM's calling convention (TVMFFISafeCallType of c_api.h), arguments included.
 * Out: the position of the first call that failed, -1 when none did, -2 when none was made since
 * the thread has too little stack left: kernels keep tiles there, and would end the process.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>

typedef struct {
  int32_t type;
  int32_t padding;
  uint64_t value;
} Any;

typedef struct {
  int (*call)(void *handle, const Any *arguments, int32_t count, Any *result);
  void *handle;
  const Any *arguments;
  int64_t count;
} Call;

enum { KERNEL_STACK = 512 << 10 };

static int has_stack(void) {
#ifdef __linux__
  static _Thread_local uintptr_t low = 0;
  if (!low) {
    pthread_attr_t attributes;
    void *start = 0;
    size_t size;
    low = 1;
    if (!pthread_getattr_np(pthread_self(), &attributes)) {
      if (!pthread_attr_getstack(&attributes, &start, &size) && start) low = (uintptr_t)start;
      pthread_attr_destroy(&attributes);
    }
  }
  char here;
  return (uintptr_t)&here - low >= KERNEL_STACK;
#else
  return 1;
#endif
}

int64_t bngen_run(const Call *calls, int64_t start, int64_t stop) {
  if (!has_stack()) return -2;
  for (int64_t i = start; i < stop; i++) {
    const Call *c = calls + i;
    Any result = {0, 0, 0};
    if (c->call(c->handle, c->arguments, (int32_t)c->count, &result)) return i;
  }
  return -1;
}

/* A kernel that does nothing: what a step costs besides its kernels is timed with it. */
int bngen_idle(void *handle, const Any *arguments, int32_t count, Any *result) {
  (void)handle, (void)arguments, (void)count, (void)result;
  return 0;
}
