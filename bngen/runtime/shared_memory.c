/* Messages that ranks of one machine exchange through memory, and the collectives of a compiled step.
 *
 * In: a ring, which is what one rank knows of the memory of all. Out: its messages are written there,
 * and those of the others waited for and read. The memory holds two counters of each rank, of messages
 * written and of messages of the others read, and then its last few messages:
 *
 *   rank 0   counters   message 0 | 1 | .. | 7      where message 8 takes the place of 0
 *   rank 1   counters   message 0 | 1 | .. | 7
 *
 * A counter belongs to one rank and only grows, modulo 2^32. To sleep and be woken takes a tenth of a
 * millisecond on a virtual machine, and what ranks exchange between two kernels is there sooner than
 * that as a rule: so one looks for a while before it sleeps, and lets others run meanwhile that want
 * this CPU.
 *
 * A step's collectives are calls like its kernels (dispatch.c): no interpreter runs for them, which
 * after each kernel would find its own memory gone from the caches. What takes longer than a rank
 * should wait without looking around, and what is no plain case, they decline: the interpreter does it.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* All ranks have the same bits, whoever of them computes here. */
#pragma STDC FP_CONTRACT OFF

enum { PLACES = 8, PLACE = 1 << 16, HEAD = 8, MOST_BYTES = PLACE - HEAD };
enum { EAGER = 20000, PATIENT = 2000000 }; /* ns of looking without pause, and until it sleeps */

/* A cache line of its own. */
typedef struct {
  _Alignas(64) _Atomic uint32_t value;
  _Atomic uint32_t sleepers;
} Counter;

typedef struct {
  Counter written, read;
} Counters;

typedef struct {
  uint8_t *memory;
  int64_t size, rank;
  int64_t written; /* messages of this rank */
  int64_t taken;   /* all messages before have been read */
  uint64_t later;  /* bit i: so has message taken + 1 + i */
  int64_t waited;  /* ns, in all */
  int64_t tick;    /* ns that one waits here at a time */
  int64_t failed;  /* ranks are out of step: nothing is exchanged any more */
} Ring;

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

static int reached(Counter *c, int64_t wanted) {
  return (int32_t)(atomic_load_explicit(&c->value, memory_order_acquire) - (uint32_t)wanted) >= 0;
}

/* Raises the caller's own counter. What it wrote before is seen by whoever sees that. */
static void raise_to(Counter *c, int64_t value) {
  atomic_store(&c->value, (uint32_t)value);
  if (atomic_load(&c->sleepers))
    syscall(SYS_futex, &c->value, FUTEX_WAKE, INT32_MAX, 0, 0, 0);
}

static void wait_awake(Counter *c, int64_t wanted, int64_t start, int64_t most) {
  int64_t passed;
  while (!reached(c, wanted) && (passed = now() - start) < most) {
    if (passed >= EAGER) sched_yield();
    else pause_briefly();
  }
}

static void wait_asleep(Counter *c, int64_t wanted, int64_t start, int64_t most) {
  int64_t passed;
  atomic_fetch_add(&c->sleepers, 1);
  while (!reached(c, wanted) && (passed = now() - start) < most) {
    uint32_t seen = atomic_load(&c->value);
    if ((int32_t)(seen - (uint32_t)wanted) >= 0) break;
    struct timespec rest = {(most - passed) / 1000000000, (most - passed) % 1000000000};
    syscall(SYS_futex, &c->value, FUTEX_WAIT, seen, &rest, 0, 0);
  }
  atomic_fetch_sub(&c->sleepers, 1);
}

/* Waits until a counter is at least so high, but for no longer than a tick; whether it is. */
static int wait_for(Ring *ring, Counter *c, int64_t wanted, int64_t awake) {
  if (reached(c, wanted)) return 1;
  int64_t start = now();
  wait_awake(c, wanted, start, awake < ring->tick ? awake : ring->tick);
  wait_asleep(c, wanted, start, ring->tick);
  ring->waited += now() - start;
  return reached(c, wanted);
}

static Counters *counters(const Ring *ring, int64_t rank) {
  return (Counters *)ring->memory + rank;
}

/* A message begins with its length. */
static uint8_t *place(const Ring *ring, int64_t rank, int64_t number) {
  uint8_t *places = ring->memory + ring->size * sizeof(Counters);
  return places + (rank * PLACES + number % PLACES) * PLACE;
}

static int64_t length(const Ring *ring, int64_t rank, int64_t number) {
  int64_t found;
  memcpy(&found, place(ring, rank, number), HEAD);
  return found;
}

/* Where this rank's next message goes; 0 while what lies there is not read by all. */
static uint8_t *next_place(Ring *ring) {
  int64_t before = ring->written - PLACES;
  if (ring->taken <= before) return 0;
  for (int64_t rank = 0; rank < ring->size; rank++)
    if (rank != ring->rank && !reached(&counters(ring, rank)->read, before + 1)) return 0;
  return place(ring, ring->rank, ring->written);
}

static int64_t sent(Ring *ring, uint8_t *there, int64_t nbytes) {
  memcpy(there, &nbytes, HEAD);
  int64_t number = ring->written++;
  raise_to(&counters(ring, ring->rank)->written, ring->written);
  return number;
}

/* Sends a message of at most MOST_BYTES: its number, or -1 while there is no place for it. */
int64_t bngen_ring_send(Ring *ring, const void *message, int64_t nbytes) {
  uint8_t *there = next_place(ring);
  if (!there) return -1;
  memcpy(there + HEAD, message, nbytes);
  return sent(ring, there, nbytes);
}

/* Waits for a rank's message: whether it is there. Not awake where the caller has waited before. */
int bngen_ring_arrived(Ring *ring, int64_t rank, int64_t number, int awake) {
  return wait_for(ring, &counters(ring, rank)->written, number + 1, awake ? PATIENT : 0);
}

/* Waits until a rank has read all messages before one. */
int bngen_ring_read(Ring *ring, int64_t rank, int64_t number, int awake) {
  return wait_for(ring, &counters(ring, rank)->read, number, awake ? PATIENT : 0);
}

/* The place of a rank's message, which begins with its length. */
void *bngen_ring_place(const Ring *ring, int64_t rank, int64_t number) {
  return place(ring, rank, number);
}

/* Gives up the places of a message, which this rank has read. */
void bngen_ring_take(Ring *ring, int64_t number) {
  if (number > ring->taken) {
    ring->later |= UINT64_C(1) << (number - ring->taken - 1);
    return;
  }
  for (ring->taken++; ring->later & 1; ring->taken++) ring->later >>= 1;
  ring->later >>= 1;
  raise_to(&counters(ring, ring->rank)->read, ring->taken);
}

/* --- collectives as calls --------------------------------------------------------------------- */

/* dlpack.h. */
typedef struct {
  void *data;
  int32_t device, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;

/* c_api.h. */
typedef struct {
  int32_t type, padding;
  union {
    const Tensor *tensor;
    uint64_t integer;
  };
} Any;

enum { SUM, AVERAGE, MOMENTS };

typedef struct {
  Ring *ring;     /* 0 where it does not go through memory */
  int64_t number; /* of the message that is under way, or -1 */
  int64_t combine;
  int64_t itemsize; /* 4 or 8: float or double */
  int64_t count;    /* elements of this rank's share, of moments */
} Collective;

enum { DONE, DECLINED };

static int64_t nbytes_of(const Collective *c, const Tensor *t) {
  int64_t n = c->itemsize;
  for (int32_t i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

static double element(const Collective *c, const void *numbers, int64_t i) {
  return c->itemsize == 4 ? ((const float *)numbers)[i] : ((const double *)numbers)[i];
}

/* Rounded to the type of the collective. */
static double rounded(const Collective *c, double x) { return c->itemsize == 4 ? (float)x : x; }

/* Where results go, piece after piece. */
typedef struct {
  const Any *pieces;
  int64_t at;
} Cursor;

static void put(const Collective *c, Cursor *to, double x) {
  for (int64_t n; to->at >= (n = nbytes_of(c, to->pieces->tensor) / c->itemsize); to->pieces++)
    to->at -= n;
  void *data = to->pieces->tensor->data;
  if (c->itemsize == 4) ((float *)data)[to->at++] = (float)x;
  else ((double *)data)[to->at++] = x;
}

/* What a rank has sent, behind the head and, of moments, the count. */
static const void *numbers_of(const Collective *c, int64_t rank) {
  return place(c->ring, rank, c->number) + HEAD + (c->combine == MOMENTS ? 8 : 0);
}

/* Sends what the arguments hold, one after the other. */
int bngen_collective_start(Collective *c, const Any *arguments, int32_t count, Any *result) {
  (void)result;
  if (!c->ring || c->ring->failed) return DECLINED;
  uint8_t *there = next_place(c->ring);
  if (!there) return DECLINED;
  uint8_t *end = there + HEAD;
  if (c->combine == MOMENTS) {
    memcpy(end, &c->count, 8);
    end += 8;
  }
  for (int32_t i = 0; i < count; i++) {
    int64_t n = nbytes_of(c, arguments[i].tensor);
    memcpy(end, arguments[i].tensor->data, n);
    end += n;
  }
  c->number = sent(c->ring, there, end - there - HEAD);
  return DONE;
}

/* Sums in the order of ranks: every one of them gets the same bits. */
static void finish_sum(const Collective *c, int64_t elements, Cursor to) {
  for (int64_t i = 0; i < elements; i++) {
    double sum = element(c, numbers_of(c, 0), i);
    for (int64_t rank = 1; rank < c->ring->size; rank++)
      sum = rounded(c, sum + element(c, numbers_of(c, rank), i));
    put(c, &to, c->combine == AVERAGE ? sum / c->ring->size : sum);
  }
}

static int64_t count_of(const Collective *c, int64_t rank) {
  int64_t count;
  memcpy(&count, place(c->ring, rank, c->number) + HEAD, 8);
  return count;
}

/* Means, variances and the count of all elements together; bngen.moments says how and why. Whether
 * any rank has elements. */
static int finish_moments(const Collective *c, int64_t channels, Cursor means) {
  Ring *ring = c->ring;
  Cursor variances = means;
  int64_t first = -1, there = 0, total = 0;
  for (int64_t rank = 0; rank < ring->size; rank++) {
    int64_t count = count_of(c, rank);
    total += count;
    if (count <= 0) continue;
    if (first < 0) first = rank;
    there++;
  }
  if (!there) return 0;
  variances.at = channels;
  for (int64_t i = 0; i < channels; i++) {
    double base = element(c, numbers_of(c, first), i), shift = 0, plain = 0, spread = 0;
    for (int64_t rank = first; rank < ring->size; rank++) {
      int64_t count = count_of(c, rank);
      if (count <= 0) continue;
      double mean = element(c, numbers_of(c, rank), i);
      shift += (mean - base) * count;
      plain += mean;
    }
    double middle = base + shift / total;
    if (!isfinite(middle)) middle = plain / there;
    for (int64_t rank = first; rank < ring->size; rank++) {
      int64_t count = count_of(c, rank);
      if (count <= 0) continue;
      double off = element(c, numbers_of(c, rank), i) - middle;
      spread += (element(c, numbers_of(c, rank), channels + i) + off * off) * count;
    }
    put(c, &means, middle);
    put(c, &variances, spread / total);
  }
  put(c, &variances, total);
  return 1;
}

/* Waits for what all ranks have sent, and fills the arguments with what it comes to. */
int bngen_collective_finish(Collective *c, const Any *arguments, int32_t count, Any *result) {
  (void)count, (void)result;
  if (!c->ring || c->number < 0 || c->ring->failed) return DECLINED;
  Ring *ring = c->ring;
  int64_t ahead = c->number - ring->taken;
  if (ahead < 0 || (ahead && (ring->later >> (ahead - 1) & 1))) return DECLINED; /* kept elsewhere */
  int64_t nbytes = length(ring, ring->rank, c->number);
  for (int64_t rank = 0; rank < ring->size; rank++) {
    if (rank == ring->rank) continue;
    if (!bngen_ring_arrived(ring, rank, c->number, 1)) return DECLINED;
    if (length(ring, rank, c->number) != nbytes) return DECLINED;
  }
  Cursor to = {arguments, 0};
  if (c->combine != MOMENTS) finish_sum(c, nbytes / c->itemsize, to);
  else if (!finish_moments(c, (nbytes - 8) / c->itemsize / 2, to)) return DECLINED;
  bngen_ring_take(ring, c->number);
  c->number = -1;
  return DONE;
}
