// The part of the CUDA runtime that csrc/stream uses, on threads of the host, so that what queues work for a GPU runs where there is none:
// streams and the driver's thread for calls are threads, memory of a device is memory. It does what the CUDA runtime API's reference says
// (version 13.0: API synchronisation behaviour, memory management, streams, events) and refuses what that forbids: operands that are not
// the device's, copies across the end of a registered range, events of another device than the stream's, CUDA in a call of the driver's
// thread. Where the reference leaves it open whether whoever queues a copy waits for it, here they do, and are counted.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define CUDART_CB

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorHostMemoryAlreadyRegistered = 712,
  cudaErrorHostMemoryNotRegistered = 713,
  cudaErrorNotPermitted = 800,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDefault = 4 };
constexpr unsigned cudaHostRegisterPortable = 1, cudaHostRegisterReadOnly = 8, cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

// What somebody waits for.
struct HostCudaMark {
  void set() {
    const std::lock_guard lock(mutex);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    is_set = true;
    came.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    came.wait(lock, [&] { return is_set; });
  }
  bool has_come() {
    const std::lock_guard lock(mutex);
    return is_set;
  }
  std::mutex mutex;
  std::condition_variable came;
  bool is_set = false;
  double seconds = 0.0;
};

// A thread that does one thing after the other.
class HostCudaThread {
 public:
  HostCudaThread() : thread_([this] { work(); }) {}
  ~HostCudaThread() {
    push(nullptr);
    thread_.join();
  }
  void push(std::function<void()> task) {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    ++n_left_;
    changed_.notify_all();
  }
  void drain() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return n_left_ == 0; });
  }
  [[nodiscard]] bool is_idle() {
    const std::lock_guard lock(mutex_);
    return n_left_ == 0;
  }

 private:
  void work() {
    for (bool goes_on = true; goes_on;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !tasks_.empty(); });
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      goes_on = static_cast<bool>(task);
      if (goes_on) task();
      lock.lock();
      --n_left_;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  int64_t n_left_ = 0;
  std::thread thread_;
};

struct CUstream_st {
  int device;
  HostCudaThread thread;
};
struct CUevent_st {
  int device;
  bool is_timed;
  std::shared_ptr<HostCudaMark> mark;
};
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

class HostCuda {
 public:
  struct Memory {
    uintptr_t end;
    int device;  // -1: page-locked
    bool is_registered, is_read_only;
  };
  static HostCuda& self() {
    static HostCuda runtime;
    return runtime;
  }

  int n_devices = 1;
  int64_t most_registered = int64_t{1} << 40;
  std::atomic<int> n_waits{0};                // copies that whoever queued them waited for
  std::atomic<int> fault{cudaSuccess};        // of a kernel: all that comes later fails, until cudaDeviceReset
  std::atomic<int64_t> kernels_to_fault{-1};  // launches until one fails
  int n_streams = 0, n_events = 0, n_resets = 0;
  bool can_reset = true;  // real ones may leave a process without its GPUs
  bool can_wait_for_values = true;
  std::atomic<int> n_value_waits{0};
  static inline thread_local int device = 0;
  static inline thread_local bool is_calling = false;  // in a call of the driver's thread

  [[nodiscard]] cudaError_t state() const { return is_calling ? cudaErrorNotPermitted : static_cast<cudaError_t>(fault.load()); }
  [[nodiscard]] size_t n_allocated() {
    const std::lock_guard lock(mutex_);
    return memory_.size();
  }
  void add(const void* bytes, size_t n, Memory memory) {
    const std::lock_guard lock(mutex_);
    memory.end = reinterpret_cast<uintptr_t>(bytes) + n;
    memory_[reinterpret_cast<uintptr_t>(bytes)] = memory;
  }
  bool remove(const void* bytes, bool is_registered) {
    const std::lock_guard lock(mutex_);
    const auto found = memory_.find(reinterpret_cast<uintptr_t>(bytes));
    if (found == memory_.end() || found->second.is_registered != is_registered) return false;
    memory_.erase(found);
    return true;
  }
  // What the bytes lie in; an end of 0 where in none of it; nothing where they cross from one into another.
  [[nodiscard]] std::optional<Memory> place_of(const void* bytes, int64_t n_bytes) {
    const std::lock_guard lock(mutex_);
    const auto begin = reinterpret_cast<uintptr_t>(bytes);
    const uintptr_t end = begin + static_cast<uintptr_t>(n_bytes);
    const auto after = memory_.upper_bound(begin);
    if (after != memory_.begin() && std::prev(after)->second.end > begin) {
      return std::prev(after)->second.end >= end ? std::optional(std::prev(after)->second) : std::nullopt;
    }
    return after == memory_.end() || after->first >= end ? std::optional(Memory{0, -1, false, false}) : std::nullopt;
  }
  [[nodiscard]] int64_t registered_bytes() {
    const std::lock_guard lock(mutex_);
    int64_t sum = 0;
    for (const auto& [begin, memory] : memory_) sum += memory.is_registered ? static_cast<int64_t>(memory.end - begin) : 0;
    return sum;
  }
  // Work of a stream, which is left out once a kernel has failed.
  static void push(cudaStream_t stream, std::function<void()> work) {
    stream->thread.push([work = std::move(work)] {
      if (self().fault == cudaSuccess) work();
    });
  }
  HostCudaThread& driver() { return driver_; }

 private:
  std::mutex mutex_;
  std::map<uintptr_t, Memory> memory_;
  HostCudaThread driver_;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorNotPermitted:
      return "operation not permitted";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    default:
      return "invalid argument";
  }
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = HostCuda::self().n_devices;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  HostCuda::device = device;
  return HostCuda::self().state();
}
inline cudaError_t cudaDeviceReset() {
  if (HostCuda::self().can_reset) HostCuda::self().fault = cudaSuccess;
  ++HostCuda::self().n_resets;
  return cudaSuccess;
}
// Streams of this backend are polled before.
inline cudaError_t cudaDeviceSynchronize() { return HostCuda::self().state(); }

template <typename T>
cudaError_t cudaMalloc(T** bytes, size_t n) {
  if (n > size_t{1} << 40) return cudaErrorMemoryAllocation;
  *bytes = static_cast<T*>(std::aligned_alloc(256, (n + 255) / 256 * 256));
  std::memset(*bytes, 0xff, n);  // nothing that was computed
  HostCuda::self().add(*bytes, n, {0, HostCuda::device, false, false});
  return HostCuda::self().state();
}
inline cudaError_t cudaFree(void* bytes) {
  if (bytes != nullptr && !HostCuda::self().remove(bytes, false)) return cudaErrorInvalidValue;
  std::free(bytes);
  return HostCuda::self().state();
}
template <typename T>
cudaError_t cudaMallocHost(T** bytes, size_t n) {
  *bytes = static_cast<T*>(std::aligned_alloc(4096, (n + 4095) / 4096 * 4096));
  HostCuda::self().add(*bytes, n, {0, -1, false, false});
  return HostCuda::self().state();
}
inline cudaError_t cudaFreeHost(void* bytes) { return cudaFree(bytes); }
inline cudaError_t cudaHostRegister(void* bytes, size_t n, unsigned flags) {
  HostCuda& runtime = HostCuda::self();
  const auto place = runtime.place_of(bytes, static_cast<int64_t>(n));
  if (!place || place->end != 0) return cudaErrorHostMemoryAlreadyRegistered;
  if (runtime.registered_bytes() + static_cast<int64_t>(n) > runtime.most_registered) return cudaErrorMemoryAllocation;
  runtime.add(bytes, n, {0, -1, true, (flags & cudaHostRegisterReadOnly) != 0});
  return runtime.state();
}
inline cudaError_t cudaHostUnregister(void* bytes) {
  return HostCuda::self().remove(bytes, true) ? HostCuda::self().state() : cudaErrorHostMemoryNotRegistered;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  ++HostCuda::self().n_streams;
  *stream = new CUstream_st{HostCuda::device, {}};
  return HostCuda::self().state();
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  --HostCuda::self().n_streams;
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (HostCuda::self().state() != cudaSuccess) return HostCuda::self().state();
  return stream->thread.is_idle() ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  ++HostCuda::self().n_events;
  *event = new CUevent_st{HostCuda::device, (flags & cudaEventDisableTiming) == 0, nullptr};
  return HostCuda::self().state();
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  --HostCuda::self().n_events;
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->mark = std::make_shared<HostCudaMark>();
  stream->thread.push([mark = event->mark] { mark->set(); });  // also after a fault, so that nobody waits for ever
  return HostCuda::self().state();
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->mark != nullptr)
    stream->thread.push([mark = event->mark] { mark->wait(); });  // of the record that was last when this is called
  return HostCuda::self().state();
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->mark == nullptr || event->mark->has_come() ? HostCuda::self().state() : cudaErrorNotReady;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->mark != nullptr) event->mark->wait();
  return HostCuda::self().state();
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (!from->is_timed || !to->is_timed || from->device != to->device || from->mark == nullptr || to->mark == nullptr) {
    return cudaErrorInvalidResourceHandle;
  }
  if (!from->mark->has_come() || !to->mark->has_come()) return cudaErrorNotReady;
  *milliseconds = static_cast<float>((to->mark->seconds - from->mark->seconds) * 1e3);
  return HostCuda::self().state();
}
inline cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* given) {
  HostCuda::push(stream, [=] {
    HostCudaMark done;
    HostCuda::self().driver().push([&] {
      HostCuda::is_calling = true;
      function(given);
      HostCuda::is_calling = false;
      done.set();
    });
    done.wait();
  });
  return HostCuda::self().state();
}

// Of the driver: it has one call.
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;
#define CUDART_VERSION 13000
inline int host_cuda_wait_value(cudaStream_t stream, unsigned long long address, uint32_t value, unsigned) {
  ++HostCuda::self().n_value_waits;
  stream->thread.push([address, value] {  // also after a fault
    const auto* reached = reinterpret_cast<const std::atomic<uint32_t>*>(address);
    while (static_cast<int32_t>(reached->load(std::memory_order_acquire) - value) < 0) std::this_thread::yield();
  });
  return 0;
}
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  const bool has_it = std::string(name) == "cuStreamWaitValue32" && HostCuda::self().can_wait_for_values;
  *function = has_it ? reinterpret_cast<void*>(&host_cuda_wait_value) : nullptr;
  *result = has_it ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
  constexpr size_t kTakenAtOnce = size_t{64} << 10;
  HostCuda& runtime = HostCuda::self();
  if (runtime.state() != cudaSuccess) return runtime.state();
  const auto target = runtime.place_of(to, static_cast<int64_t>(n));
  const auto source = runtime.place_of(from, static_cast<int64_t>(n));
  if (!target || !source || target->is_read_only) return cudaErrorInvalidValue;
  const bool is_up = target->device >= 0;
  const bool is_down = source->device >= 0;
  if (kind == cudaMemcpyHostToDevice && (!is_up || is_down)) return cudaErrorInvalidValue;
  if (kind == cudaMemcpyDeviceToHost && (is_up || !is_down)) return cudaErrorInvalidValue;
  const bool is_from_pageable = !is_down && source->end == 0;
  if (is_up && is_from_pageable && n <= kTakenAtOnce) {
    const auto* bytes = static_cast<const uint8_t*>(from);
    HostCuda::push(stream, [to, taken = std::vector<uint8_t>(bytes, bytes + n)] { std::memcpy(to, taken.data(), taken.size()); });
    return cudaSuccess;
  }
  HostCuda::push(stream, [=] { std::memcpy(to, from, n); });
  if (is_from_pageable || target->end == 0 || (!is_up && !is_down)) {
    ++runtime.n_waits;
    stream->thread.drain();
  }
  return runtime.state();
}
