/* A sequence of kernel calls without an interpreter between them.
 *
 * In: calls with TVM's calling convention (TVMFFISafeCallType of c_api.h), arguments included.
 * Out: the position of the first call that failed, -1 when none did.
 */
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

int64_t bngen_run(const Call *calls, int64_t start, int64_t stop) {
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
