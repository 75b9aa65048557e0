// A queue of work that its own pinned threads take in order, as a stream of a GPU does: one thread makes a lane, several a processor.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "probe/threads.hpp"

namespace pshard {

// Set once by the thread that gets there, waited for by others; knows when. For short waits threads poll, letting others have the CPU.
class Signal {
 public:
  void set(double seconds);
  void wait() const;
  [[nodiscard]] bool is_set() const { return is_set_.load(std::memory_order_acquire) != 0; }
  [[nodiscard]] double seconds() const { return seconds_; }

 private:
  std::atomic<uint32_t> is_set_{0};
  double seconds_ = 0.0;
};

// The first thing that went wrong. From then on queues pass their work by, so that everything that is waited for still comes.
class Failure {
 public:
  void set(const std::string& message);
  [[nodiscard]] bool is_set() const { return is_set_.load(std::memory_order_acquire); }
  // And forgets it.
  [[nodiscard]] std::string take();

 private:
  std::atomic<bool> is_set_{false};
  std::mutex mutex_;
  std::string message_;
};

struct Task {
  std::function<void()> alone{};      // by one thread, first
  std::function<void(int)> shared{};  // by all threads, numbered from 0
  bool always = false;                // also after a failure
};

class WorkQueue {
 public:
  // One thread on each of `cpus`, which may be shared with other queues. `failure` outlives the queue.
  WorkQueue(const std::vector<int>& cpus, Failure& failure);
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  [[nodiscard]] int size() const { return static_cast<int>(threads_.size()); }
  void push(Task task);

 private:
  void lead();
  void follow(int thread);
  void run(Task& task);
  template <typename Work>
  void guarded(const Work& work);
  void stop();

  Failure& failure_;
  std::mutex mutex_;
  std::deque<Task> tasks_;
  std::atomic<uint32_t> n_pushed_{0};
  std::atomic<bool> stop_{false};
  std::atomic<bool> leader_is_gone_{false};
  const std::function<void(int)>* shared_ = nullptr;  // of the round that runs
  std::atomic<uint32_t> round_{0};
  std::atomic<int> n_working_{0};
  std::vector<std::thread> threads_;
};

}  // namespace pshard
