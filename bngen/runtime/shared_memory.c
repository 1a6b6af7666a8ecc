/* Counters in memory that several processes share: one says how far it is, others wait for it.
 *
 * In: the address of a counter, which belongs to one process and only grows, modulo 2^32. Out: it
 * is raised, and who waits is woken; or it has been waited for.
 *
 * To sleep and be woken takes a tenth of a millisecond on a virtual machine, and what ranks exchange
 * between two kernels is there sooner than that as a rule: so one looks for a while before it
 * sleeps, and lets others run meanwhile that want this CPU.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A cache line of its own. */
typedef struct {
  _Alignas(64) _Atomic uint32_t value;
  _Atomic uint32_t sleepers;
} counter;

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Leaves the core to the other thread on it, which may be the rank that is waited for. */
static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int reached(counter *c, uint32_t wanted) {
  return (int32_t)(atomic_load_explicit(&c->value, memory_order_acquire) - wanted) >= 0;
}

/* Raises the caller's own counter. What it wrote before is seen by whoever sees that. */
void bngen_shared_raise(counter *c, uint32_t value) {
  atomic_store(&c->value, value);
  if (atomic_load(&c->sleepers))
    syscall(SYS_futex, &c->value, FUTEX_WAKE, INT32_MAX, 0, 0, 0);
}

/* Waits until a counter is at least so high: 1; or for so many nanoseconds, then 0.
 *
 * Looks without pause for `eager` of them, then lets others run between two looks until `patient`,
 * then sleeps. */
int bngen_shared_wait(counter *c, uint32_t wanted, int64_t eager, int64_t patient, int64_t most) {
  if (reached(c, wanted)) return 1;
  int64_t start = now(), passed;
  while ((passed = now() - start) < patient && passed < most) {
    if (reached(c, wanted)) return 1;
    if (passed >= eager) sched_yield();
    else pause_briefly();
  }
  atomic_fetch_add(&c->sleepers, 1);
  while (!reached(c, wanted) && (passed = now() - start) < most) {
    uint32_t seen = atomic_load(&c->value);
    if ((int32_t)(seen - wanted) >= 0) break;
    struct timespec rest = {(most - passed) / 1000000000, (most - passed) % 1000000000};
    syscall(SYS_futex, &c->value, FUTEX_WAIT, seen, &rest, 0, 0);
  }
  atomic_fetch_sub(&c->sleepers, 1);
  return reached(c, wanted);
}
