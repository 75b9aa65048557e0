// How far the host has come, where streams of GPUs see it: a count in page-locked memory. A stream waits for it without a kernel and
// without whoever queues, so that what comes behind is queued while the host still computes.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

namespace pshard {

class HostCount {
 public:
  void open();
  void close();
  // The count that one more makes.
  [[nodiscard]] uint32_t next() { return ++n_; }
  // By the thread of the host that has come so far; in their order.
  void reach(uint32_t count) { reached_->store(count, std::memory_order_release); }
  // False where the driver cannot.
  [[nodiscard]] bool wait(cudaStream_t stream, uint32_t count);

 private:
  using WaitValue = int (*)(cudaStream_t stream, unsigned long long address, uint32_t value, unsigned flags);
  std::atomic<uint32_t>* reached_ = nullptr;
  uint32_t n_ = 0;
  WaitValue wait_value_ = nullptr;
};

}  // namespace pshard
