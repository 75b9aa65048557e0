#include <new>

#include "stream/cuda_host_count.cuh"
#include "stream/cuda_staging.cuh"

namespace pshard {
namespace {

constexpr unsigned kVersion = 12000;  // of the driver's call that is asked for
constexpr unsigned kAtLeast = 0;      // CU_STREAM_WAIT_VALUE_GEQ: by the difference, so that the count may wrap around
constexpr int kDriverSuccess = 0;

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

}  // namespace

// The driver has the call, the runtime has no name for it; asked for this way, libcuda need not be linked.
void HostCount::open() {
  void* bytes = nullptr;
  require_success(cudaMallocHost(&bytes, sizeof(uint32_t)), "locking memory for a count");
  reached_ = new (bytes) std::atomic<uint32_t>(0);
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &found, kVersion, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuStreamWaitValue32", &found, cudaEnableDefault, &result);
#endif
  if (error == cudaSuccess && result == cudaDriverEntryPointSuccess) wait_value_ = reinterpret_cast<WaitValue>(found);
  static_cast<void>(cudaGetLastError());
}

void HostCount::close() {
  cudaFreeHost(reached_);
  reached_ = nullptr;
}

bool HostCount::wait(cudaStream_t stream, uint32_t count) {
  if (wait_value_ == nullptr) return false;
  if (wait_value_(stream, reinterpret_cast<uintptr_t>(reached_), count, kAtLeast) == kDriverSuccess) return true;
  wait_value_ = nullptr;  // this GPU has no such waits
  return false;
}

}  // namespace pshard
