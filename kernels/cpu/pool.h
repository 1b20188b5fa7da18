/* The one pool of threads under MLX's products (blas.c) and every operation for the CPU (cpu.cpp): C and C++.

   OpenBLAS's own threads wait for each other in every product by sched_yield, which on a machine with anything else to
   do costs most of the time. Here work is taken piece by piece by whoever is running. */
#pragma once

#ifndef __cplusplus
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void (*mlxgpt_work)(const void *context, int i);

struct mlxgpt_job {
  mlxgpt_work call;
  const void *context;
  int count, next;
};

struct mlxgpt_threads {
  pthread_mutex_t callers, mutex;
  pthread_cond_t awake, done;
  int started, helpers, sleeping, waiting, inside;
  int cpu;         /* the newest caller's */
  int64_t resting; /* until then, in ns, helpers are not asked */
  unsigned number; /* of the newest job */
  struct mlxgpt_job *job;
};

/* Visible, so that the linker makes one of it where several libraries were built with this header: blas.c's, which is
   loaded first and globally, or else the first operation's (an inline variable is a unique symbol of the process). */
#ifdef __cplusplus
inline
#endif
    __attribute__((visibility("default"))) struct mlxgpt_threads mlxgpt_pool = {
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER};

static inline void mlxgpt_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* The variables that OpenBLAS has, and ours before them; else the CPUs that this process may use. */
static inline int mlxgpt_threads_wanted(void) {
  static const char *const names[] = {"MLXGPT_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"};
  for (int i = 0; i < 3; i++) {
    const char *text = getenv(names[i]);
    int count = text ? atoi(text) : 0;
    if (count > 0) return count < 64 ? count : 64;
  }
  cpu_set_t set;
  int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return count < 1 ? 1 : count < 64 ? count : 64;
}

static inline int64_t mlxgpt_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Whether `value` was seen to differ from `old` while spinning for 60 µs: as long as MLX takes between two products
   of a decode step. */
static inline int mlxgpt_changes(const unsigned *value, unsigned old) {
  int64_t until = mlxgpt_now() + 60000;
  do {
    for (int i = 0; i < 32; i++) {
      if (__atomic_load_n(value, __ATOMIC_ACQUIRE) != old) return 1;
      mlxgpt_relax();
    }
  } while (mlxgpt_now() < until);
  return 0;
}

/* Returns how many pieces it did. */
static inline int mlxgpt_take_part(struct mlxgpt_job *job) {
  int done = 0;
  for (int i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->count; done++) job->call(job->context, i);
  return done;
}

/* Woken by a caller a helper is often put on the caller's own CPU, where it takes from it what it gives: it moves. */
static inline void mlxgpt_keep_clear(const cpu_set_t *allowed, int cpu) {
  cpu_set_t others = *allowed;
  if (cpu < 0 || sched_getcpu() != cpu) return;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof others, &others);
}

static inline void *mlxgpt_help(void *unused) {
  struct mlxgpt_threads *pool = &mlxgpt_pool;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  for (unsigned seen = 0;;) {
    mlxgpt_changes(&pool->number, seen);
    pthread_mutex_lock(&pool->mutex);
    if (pool->number == seen) {
      pool->sleeping++;
      while (pool->number == seen) pthread_cond_wait(&pool->awake, &pool->mutex);
      pool->sleeping--;
    }
    seen = pool->number;
    struct mlxgpt_job *job = pool->job;
    int cpu = pool->cpu;
    if (job) pool->inside++;
    pthread_mutex_unlock(&pool->mutex);
    mlxgpt_keep_clear(&allowed, cpu);
    if (!job) continue;
    mlxgpt_take_part(job);
    pthread_mutex_lock(&pool->mutex);
    __atomic_fetch_sub(&pool->inside, 1, __ATOMIC_RELEASE);
    if (pool->waiting) pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->mutex);
  }
  return unused;
}

/* How many threads take part, this one included. The first call starts the others. */
static inline int mlxgpt_thread_count(void) {
  struct mlxgpt_threads *pool = &mlxgpt_pool;
  if (!__atomic_load_n(&pool->started, __ATOMIC_ACQUIRE)) {
    pthread_mutex_lock(&pool->mutex);
    if (!pool->started) {
      pthread_t thread;
      for (int i = mlxgpt_threads_wanted(); i > 1; i--)
        if (pthread_create(&thread, NULL, mlxgpt_help, NULL) == 0) {
          pthread_detach(thread);
          pool->helpers++;
        }
      __atomic_store_n(&pool->started, 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&pool->mutex);
  }
  return pool->helpers + 1;
}

/* As many; 1 while they work, for what their work itself calls. */
static inline int mlxgpt_free_threads(void) {
  return __atomic_load_n(&mlxgpt_pool.job, __ATOMIC_RELAXED) ? 1 : mlxgpt_thread_count();
}

static inline void mlxgpt_wait_for_helpers(struct mlxgpt_threads *pool) {
  pthread_mutex_lock(&pool->mutex);
  pool->job = NULL;
  unsigned inside = pool->inside;
  pthread_mutex_unlock(&pool->mutex);
  while (inside && mlxgpt_changes((const unsigned *)&pool->inside, inside))
    inside = __atomic_load_n(&pool->inside, __ATOMIC_ACQUIRE);
  if (!inside) return;
  pthread_mutex_lock(&pool->mutex);
  pool->waiting = 1;
  while (pool->inside) pthread_cond_wait(&pool->done, &pool->mutex);
  pool->waiting = 0;
  pthread_mutex_unlock(&pool->mutex);
}

/* call(context, i) for every i < count, on this thread and those that are free; returns when all are done. A second
   caller, work that asks for more of it, and a child of fork(), which has no helpers, do all of it themselves. So does
   everyone for a while after a helper was put aside with a piece in its hands, the machine having other things to do:
   16 times what that cost. */
static inline void mlxgpt_each(int count, mlxgpt_work call, const void *context) {
  struct mlxgpt_threads *pool = &mlxgpt_pool;
  int64_t start;
  if (count < 2 || mlxgpt_thread_count() == 1 || (start = mlxgpt_now()) < __atomic_load_n(&pool->resting, __ATOMIC_RELAXED) ||
      pthread_mutex_trylock(&pool->callers) != 0) {
    for (int i = 0; i < count; i++) call(context, i);
    return;
  }
  struct mlxgpt_job job = {call, context, count, 0};
  pthread_mutex_lock(&pool->mutex);
  pool->job = &job;
  pool->cpu = sched_getcpu();
  __atomic_fetch_add(&pool->number, 1, __ATOMIC_RELEASE);
  if (pool->sleeping) pthread_cond_broadcast(&pool->awake);
  pthread_mutex_unlock(&pool->mutex);
  int done = mlxgpt_take_part(&job);
  int64_t ended = mlxgpt_now();
  mlxgpt_wait_for_helpers(pool);
  int64_t waited = mlxgpt_now() - ended;
  if (waited > 2 * (ended - start) / (done + 1) + 100000)
    __atomic_store_n(&pool->resting, ended + 16 * waited, __ATOMIC_RELAXED);
  pthread_mutex_unlock(&pool->callers);
}

#ifdef __cplusplus
}  // extern "C"

namespace mlxgpt {

class Pool {
 public:
  static Pool shared() { return {}; }

  int threads() const { return mlxgpt_thread_count(); }

  // work(i) for every i < count.
  template <class Work>
  void each(int count, const Work& work) {
    mlxgpt_each(count, [](const void* w, int i) { (*static_cast<const Work*>(w))(i); }, &work);
  }
};

// How many rows of a matrix, which is read once, are a task's: long stretches of memory, as far as there are enough.
inline int rows_a_piece(int count, int row_bytes) {
  constexpr int64_t LEAST = 32 << 10, MOST = 2 << 20, PIECES = 8;
  int64_t bytes = int64_t(count) * row_bytes / PIECES;
  bytes = bytes < LEAST ? LEAST : bytes > MOST ? MOST : bytes;
  int rows = int(bytes / (row_bytes < 1 ? 1 : row_bytes));
  return rows < 1 ? 1 : rows;
}

// work(first, last) for all of the count rows of a matrix, some at a time.
template <class Work>
inline void in_pieces(int count, int row_bytes, const Work& work) {
  int rows = rows_a_piece(count, row_bytes);
  Pool::shared().each((count + rows - 1) / rows, [&](int piece) {
    int last = (piece + 1) * rows;
    work(piece * rows, last < count ? last : count);
  });
}

}  // namespace mlxgpt
#endif
