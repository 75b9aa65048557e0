#include "probe/threads.hpp"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace pshard {
namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Polls; a thread that polls for long lets others have the CPU, so that more threads than CPUs still come to an end.
template <typename Condition>
void poll(const Condition& is_met) {
  for (int turn = 1; !is_met(); ++turn) {
    if (turn % 4096 == 0) {
      std::this_thread::yield();
    } else {
      relax();
    }
  }
}

}  // namespace

void pin(std::thread& thread, int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  if (pthread_setaffinity_np(thread.native_handle(), sizeof set, &set) == 0) return;
  throw ProbeError("CPU " + std::to_string(cpu) + " is not available to this process; choose among those of its affinity mask");
#else
  static_cast<void>(thread);
  static_cast<void>(cpu);  // elsewhere the operating system places threads
#endif
}

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads_) {
    waiting_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  poll([&] { return round_.load(std::memory_order_acquire) != round; });
}

ThreadPool::ThreadPool(const std::vector<int>& cpus) : cpus_(cpus) {
  if (cpus.empty()) throw std::invalid_argument("a pool needs at least one CPU");
  try {
    for (int thread = 0; thread < static_cast<int>(cpus.size()); ++thread) {
      workers_.emplace_back([this, thread] { work(thread); });
      pin(workers_.back(), cpus[static_cast<std::size_t>(thread)]);
    }
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

double ThreadPool::run(const std::function<void(int)>& task, const Timer& timer, int n_threads) {
  if (n_threads < 1 || n_threads > size()) {
    throw std::invalid_argument("n_threads is " + std::to_string(n_threads) + ", the pool has " + std::to_string(size()));
  }
  const std::lock_guard turn(one_run_);
  std::unique_lock lock(mutex_);
  job_ = {&task, &timer, n_threads};
  n_done_ = 0;
  failure_.clear();
  ready_ = 0;
  running_ = n_threads;
  go_ = false;
  ++n_jobs_;
  wake_.notify_all();
  finished_.wait(lock, [&] { return n_done_ == n_threads; });
  if (!failure_.empty()) throw ProbeError(failure_);
  return end_ - start_;
}

void ThreadPool::work(int thread) {
  uint64_t n_seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || n_jobs_ != n_seen; });
    if (stop_) return;
    n_seen = n_jobs_;
    const Job job = job_;
    if (thread >= job.n_threads) continue;
    lock.unlock();
    take_part(job, thread);
    lock.lock();
    if (++n_done_ == job.n_threads) finished_.notify_all();
  }
}

void ThreadPool::take_part(const Job& job, int thread) {
  if (ready_.fetch_add(1, std::memory_order_acq_rel) + 1 == job.n_threads) {
    start_ = job.timer->now();
    go_.store(true, std::memory_order_release);
  } else {
    poll([&] { return go_.load(std::memory_order_acquire); });
  }
  try {
    (*job.task)(thread);
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex_);
    failure_ = error.what();
  }
  if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) end_ = job.timer->now();
}

}  // namespace pshard
