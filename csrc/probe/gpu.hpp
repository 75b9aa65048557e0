// One GPU as its probes use it: memory, lanes that work in order beside each other, events on them, and a gate that holds all lanes back,
// so that queueing work is not timed. open_gpu() gives the device of CUDA; tests give one that is made of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "probe/gpu_kernels.hpp"

namespace pshard {

enum class GpuLane : uint8_t { compute, up, down };  // work; copies to the GPU; copies to the host
inline constexpr int kGpuLanes = 3;
inline constexpr int kGpuEvents = 8;

enum class HostMemory : uint8_t { pageable, locked };

class Gpu {
 public:
  virtual ~Gpu() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual int64_t cache_bytes() const = 0;  // of the last level
  [[nodiscard]] virtual int64_t free_bytes() const = 0;
  [[nodiscard]] virtual int32_t copy_engines() const = 0;
  [[nodiscard]] virtual double tick_seconds() const = 0;  // the smallest step of seconds_between()

  // Aligned to kGpuAlignment. Throw GpuError where the device has not that much; lock() gives null where the driver refuses.
  [[nodiscard]] virtual uint8_t* allocate(int64_t n_bytes) = 0;
  virtual void free(uint8_t* bytes) noexcept = 0;
  [[nodiscard]] virtual uint8_t* lock(int64_t n_bytes) = 0;
  virtual void unlock(uint8_t* bytes) noexcept = 0;

  // Queued: these return before the work is done, except for copies of pageable memory.
  virtual void copy(GpuLane lane, void* to, const void* from, int64_t n_bytes) = 0;
  virtual void fill(GpuLane lane, void* to, uint8_t byte, int64_t n_bytes) = 0;
  virtual void do_nothing(GpuLane lane) = 0;                              // one kernel
  virtual void show(GpuLane lane, uint32_t* locked, uint32_t value) = 0;  // a kernel writes to page-locked memory of the host
  virtual void sum(GpuLane lane, const void* words, int64_t n_words, uint64_t* out) = 0;  // of 64 bits, a multiple of 2 words
  virtual void multiply(GpuLane lane, const GpuProduct& shape, const void* weights, const float* x, float* y, void* scratch) = 0;
  virtual void multiply_experts(GpuLane lane, const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y,
                                void* scratch) = 0;
  virtual void attend(GpuLane lane, const AttentionShape& shape, const float* queries, const void* keys, const void* values, float* out,
                      void* scratch) = 0;

  // With the vendor's library for matrices of halves: y[batch][n_rows] = x[batch][n_columns] times the transposed weights. Throws GpuError,
  // with what was looked for, where that library is not installed.
  virtual void multiply_by_library(GpuLane lane, const GpuProduct& shape, const uint16_t* weights, const uint16_t* x, float* y) = 0;

  virtual void record(GpuLane lane, int event) = 0;
  virtual void wait(GpuLane lane, int event) = 0;  // for what was recorded last
  virtual void synchronise(GpuLane lane) = 0;
  // From one event to another, both passed.
  [[nodiscard]] virtual double seconds_between(int from, int to) = 0;

  // Between these nothing that is queued begins. At most kMostQueued pieces of work fit, and no call that waits. release() is false where
  // the gate opened by itself, after a second or two, because somebody waited.
  virtual void hold() = 0;
  [[nodiscard]] virtual bool release() = 0;
};

inline constexpr int kMostQueued = 128;

// Throws GpuError where there is no such device, or pshard was built without CUDA.
[[nodiscard]] std::unique_ptr<Gpu> open_gpu(int index);

// Bytes of a GPU, or of the host, page-locked or not.
class GpuBytes {
 public:
  GpuBytes() = default;
  GpuBytes(Gpu& gpu, int64_t n_bytes) : gpu_(&gpu), data_(gpu.allocate(n_bytes)), size_(n_bytes) {}
  ~GpuBytes() {
    if (data_ != nullptr) gpu_->free(data_);
  }
  GpuBytes(const GpuBytes&) = delete;
  GpuBytes& operator=(const GpuBytes&) = delete;
  GpuBytes(GpuBytes&& other) noexcept { swap(other); }
  GpuBytes& operator=(GpuBytes&& other) noexcept {
    GpuBytes(std::move(other)).swap(*this);
    return *this;
  }

  [[nodiscard]] uint8_t* data() const { return data_; }
  [[nodiscard]] int64_t size() const { return size_; }
  template <typename T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void swap(GpuBytes& other) noexcept {
    std::swap(gpu_, other.gpu_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  Gpu* gpu_ = nullptr;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace pshard
