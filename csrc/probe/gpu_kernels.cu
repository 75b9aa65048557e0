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

}  // namespace

void multiply(const GpuProduct& shape, const void* weights, const float* x, float* y, void* scratch, GpuStream stream) {
  CudaQueue queue{stream};
  queue_product(queue, shape, weights, x, y, scratch);
}

void multiply_experts(const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y, void* scratch,
                      GpuStream stream) {
  CudaQueue queue{stream};
  queue_experts(queue, shape, weights, ids, x, y, scratch);
}

void attend(const AttentionShape& shape, bool is_causal, const float* queries, const void* keys, const void* values, float* out,
            void* scratch, GpuStream stream) {
  CudaQueue queue{stream};
  queue_attention(queue, shape, is_causal, queries, keys, values, out, scratch);
}

}  // namespace pshard
