#include "stream/work_queue.hpp"

#include <chrono>
#include <utility>

namespace pshard {
namespace {

constexpr int kTurnsPerLook = 64;
// Longer than waits between splits take. Not more: queues that share a CPU would keep it from each other, since a thread that yields may be
// the next that the scheduler lets run.
constexpr auto kPolling = std::chrono::microseconds(50);

// Until `atomic` differs from `old`. Polls first: waking a thread that sleeps takes longer than most waits inside a pass.
template <typename T>
void wait_for_change(const std::atomic<T>& atomic, T old) {
  const auto start = std::chrono::steady_clock::now();
  while (atomic.load(std::memory_order_acquire) == old) {
    for (int turn = 0; turn < kTurnsPerLook; ++turn) {
      if (atomic.load(std::memory_order_acquire) != old) return;
      std::this_thread::yield();
    }
    if (std::chrono::steady_clock::now() - start > kPolling) atomic.wait(old, std::memory_order_acquire);
  }
}

}  // namespace

void Signal::set(double seconds) {
  seconds_ = seconds;
  is_set_.store(1, std::memory_order_release);
  is_set_.notify_all();
}

void Signal::wait() const { wait_for_change<uint32_t>(is_set_, 0); }

void Failure::set(const std::string& message) {
  const std::lock_guard lock(mutex_);
  if (!is_set_.load(std::memory_order_relaxed)) message_ = message;
  is_set_.store(true, std::memory_order_release);
}

std::string Failure::take() {
  const std::lock_guard lock(mutex_);
  is_set_.store(false, std::memory_order_release);
  return std::exchange(message_, "");
}

WorkQueue::WorkQueue(const std::vector<int>& cpus, Failure& failure) : failure_(failure) {
  if (cpus.empty()) throw std::invalid_argument("a queue of work needs at least one CPU");
  try {
    for (int thread = 0; thread < static_cast<int>(cpus.size()); ++thread) {
      threads_.emplace_back([this, thread] { thread == 0 ? lead() : follow(thread); });
      pin(threads_.back(), cpus[static_cast<size_t>(thread)]);
    }
  } catch (...) {
    stop();
    throw;
  }
}

WorkQueue::~WorkQueue() { stop(); }

// What was pushed is still done: the leader ends when nothing is left, and only then do the others.
void WorkQueue::stop() {
  if (threads_.empty()) return;
  stop_.store(true, std::memory_order_release);
  n_pushed_.fetch_add(1, std::memory_order_acq_rel);
  n_pushed_.notify_all();
  threads_.front().join();
  leader_is_gone_.store(true, std::memory_order_release);
  round_.fetch_add(1, std::memory_order_acq_rel);
  round_.notify_all();
  for (size_t i = 1; i < threads_.size(); ++i) threads_[i].join();
}

void WorkQueue::push(Task task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  n_pushed_.fetch_add(1, std::memory_order_acq_rel);
  n_pushed_.notify_one();
}

void WorkQueue::lead() {
  while (true) {
    const uint32_t n_seen = n_pushed_.load(std::memory_order_acquire);
    Task task;
    bool found = false;
    {
      const std::lock_guard lock(mutex_);
      if (!tasks_.empty()) {
        task = std::move(tasks_.front());
        tasks_.pop_front();
        found = true;
      }
    }
    if (found) {
      run(task);
    } else if (stop_.load(std::memory_order_acquire)) {
      return;
    } else {
      wait_for_change(n_pushed_, n_seen);
    }
  }
}

template <typename Work>
void WorkQueue::guarded(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    failure_.set(error.what());
  } catch (...) {
    failure_.set("a task failed with something that is no exception");
  }
}

void WorkQueue::run(Task& task) {
  if (failure_.is_set() && !task.always) return;
  if (task.alone) guarded(task.alone);
  if (!task.shared || (failure_.is_set() && !task.always)) return;
  if (size() > 1) {
    shared_ = &task.shared;
    n_working_.store(size() - 1, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_acq_rel);
    round_.notify_all();
  }
  guarded([&] { task.shared(0); });
  for (int left = n_working_.load(std::memory_order_acquire); left > 0; left = n_working_.load(std::memory_order_acquire)) {
    wait_for_change(n_working_, left);
  }
}

void WorkQueue::follow(int thread) {
  uint32_t n_seen = 0;
  while (true) {
    wait_for_change(round_, n_seen);
    ++n_seen;
    if (leader_is_gone_.load(std::memory_order_acquire)) return;
    guarded([&] { (*shared_)(thread); });
    n_working_.fetch_sub(1, std::memory_order_acq_rel);
    n_working_.notify_all();
  }
}

}  // namespace pshard
