#include "probe/gpu_error.cuh"
#include "probe/gpu_kernels.hpp"
#include "probe/gpu_queue.cuh"

namespace pshard {
namespace {

struct CudaQueue {
  GpuStream stream;

  template <typename... Parameters, typename... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), Grid grid, int threads, Arguments... arguments) {
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
    kernel<<<blocks, static_cast<unsigned>(threads), 0, stream>>>(arguments...);
    require(cudaGetLastError(), name);
  }
};

std::string compute_capability(const char* separator) {
  int device = 0;
  int major = 0;
  int minor = 0;
  require(cudaGetDevice(&device), "cudaGetDevice");
  require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  require(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  return std::to_string(major) + separator + std::to_string(minor);
}

}  // namespace

void require_kernels() {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, sum_parts);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction || error == cudaErrorUnsupportedPtxVersion) {
    static_cast<void>(cudaGetLastError());
    throw GpuError("this pshard has no code for a GPU of compute capability " + compute_capability(".") +
                   "; build it with -C cmake.define.CMAKE_CUDA_ARCHITECTURES=" + compute_capability("") + " (75 or later)");
  }
  require(error, "cudaFuncGetAttributes");
}

void multiply(const GpuProduct& shape, const void* weights, const float* x, float* y, void* scratch, GpuStream stream) {
  CudaQueue queue{stream};
  queue_product(queue, shape, weights, x, y, scratch);
}

void multiply_experts(const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y, void* scratch,
                      GpuStream stream) {
  CudaQueue queue{stream};
  queue_experts(queue, shape, weights, ids, x, y, scratch);
}

void copy_words(void* to, const void* from, int64_t n_words, GpuStream stream) {
  CudaQueue queue{stream};
  queue.launch("copy_words_of", copy_words_of, grid_over(n_words), kPlainThreads, static_cast<const uint32_t*>(from), n_words,
               static_cast<uint32_t*>(to));
}

void attend(const AttentionShape& shape, bool is_causal, const float* queries, const void* keys, const void* values, float* out,
            void* scratch, GpuStream stream) {
  CudaQueue queue{stream};
  queue_attention(queue, shape, is_causal, queries, keys, values, out, scratch);
}

}  // namespace pshard
