// Worker threads that stay on their CPUs and start together, so that neither waking them nor creating them is timed.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "probe/measure.hpp"

namespace pshard {

// Lets a thread run on one CPU only, numbered as the operating system does. Throws ProbeError where it is not available to this process.
void pin(std::thread& thread, int cpu);

// Threads wait for each other by polling, as those of an engine do inside one pass.
class Barrier {
 public:
  explicit Barrier(int n_threads) : n_threads_(n_threads) {}
  void wait();

 private:
  const int n_threads_;
  std::atomic<int> waiting_{0};
  std::atomic<uint32_t> round_{0};
};

class ThreadPool {
 public:
  // One worker on each of `cpus`, numbers as the operating system gives them. Throws ProbeError where a CPU is not available.
  explicit ThreadPool(const std::vector<int>& cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int size() const { return static_cast<int>(workers_.size()); }
  [[nodiscard]] const std::vector<int>& cpus() const { return cpus_; }

  // Runs task(thread) on the first `n_threads` workers and returns the seconds from when all were ready until the last was done. The caller
  // sleeps meanwhile. An exception of a task is thrown again here, once all are done; no task may wait for one that threw. One run at a
  // time.
  double run(const std::function<void(int)>& task, const Timer& timer, int n_threads);
  double run(const std::function<void(int)>& task, const Timer& timer) { return run(task, timer, size()); }

 private:
  struct Job {
    const std::function<void(int)>* task = nullptr;
    const Timer* timer = nullptr;
    int n_threads = 0;
  };
  void stop();
  void work(int thread);
  void take_part(const Job& job, int thread);

  std::vector<int> cpus_;
  std::mutex one_run_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable finished_;
  Job job_;
  uint64_t n_jobs_ = 0;
  bool stop_ = false;
  int n_done_ = 0;
  std::string failure_;
  std::atomic<int> ready_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> go_{false};
  double start_ = 0.0;  // written before go_ is set, and end_ by the last worker, before it takes the mutex
  double end_ = 0.0;
  std::vector<std::thread> workers_;
};

}  // namespace pshard
