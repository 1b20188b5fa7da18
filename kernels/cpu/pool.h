// The one pool of threads under every operation for the CPU.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace mlxgpt {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// As many threads as OpenBLAS has: its variables, else the CPUs that this process may use.
inline int threads_wanted() {
  for (const char* name : {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"})
    if (const char* text = std::getenv(name))
      if (int count = std::atoi(text); count > 0) return count;
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

class Pool {
 public:
  // Visible, so that the linker makes one of it where several libraries were built with this header.
  __attribute__((visibility("default"))) static Pool& shared() {
    static Pool* pool = new Pool(threads_wanted() - 1);  // never destroyed: its threads end with the process
    return *pool;
  }

  int threads() const { return helpers_ + 1; }

  // work(i) for every i < count, on this thread and those that are free; returns when all are done. A second caller,
  // and a child of fork(), which has no helpers, do all of their work themselves.
  template <class Work>
  void each(int count, const Work& work) {
    std::unique_lock<std::mutex> mine(callers_, std::try_to_lock);
    if (!mine.owns_lock() || helpers_ == 0 || count < 2) {
      for (int i = 0; i < count; i++) work(i);
      return;
    }
    Job job{[](const void* w, int i) { (*static_cast<const Work*>(w))(i); }, &work, count};
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      number_.fetch_add(1, std::memory_order_release);
      if (sleeping_) awake_.notify_all();
    }
    job.run();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;
    }
    for (int spins = 0; inside_.load(std::memory_order_acquire); spins++)
      if (spins < 2000) relax();
      else std::this_thread::yield();
  }

 private:
  struct Job {
    void (*call)(const void*, int);
    const void* work;
    int count;
    std::atomic<int> next{0};

    void run() {
      for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(work, i);
    }
  };

  explicit Pool(int helpers) : helpers_(helpers) {
    for (int i = 0; i < helpers; i++) std::thread([this] { help(); }).detach();
  }

  // Spins for about as long as MLX takes between two products of a decode step, then sleeps.
  void help() {
    for (unsigned seen = 0;;) {
      auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
      while (number_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < until)
        for (int i = 0; i < 16; i++) relax();
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_++;
        awake_.wait(lock, [&] { return number_.load(std::memory_order_relaxed) != seen; });
        sleeping_--;
        seen = number_.load(std::memory_order_relaxed);
        job = job_;
        if (job) inside_.fetch_add(1, std::memory_order_relaxed);
      }
      if (!job) continue;
      job->run();
      inside_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int helpers_;
  std::mutex callers_, mutex_;
  std::condition_variable awake_;
  int sleeping_ = 0;
  Job* job_ = nullptr;
  std::atomic<unsigned> number_{0};
  std::atomic<int> inside_{0};
};

}  // namespace mlxgpt
