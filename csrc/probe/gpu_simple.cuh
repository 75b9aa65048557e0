// Kernels that do little: nothing, show that they have begun, hold a stream back, read memory.
#pragma once

#include "probe/gpu_language.cuh"

namespace pshard {
namespace {

constexpr int kReadThreads = 512;

__global__ void do_nothing() {}

__global__ void show_value(uint32_t* to, uint32_t value) { *static_cast<volatile uint32_t*>(to) = value; }

// Sums words of 64 bits, two at a time, and adds them to `out`. The pointer is aligned to 16 bytes.
__global__ void __launch_bounds__(kReadThreads) sum_words(const uint8_t* words, int64_t n_pairs, unsigned long long* out) {
  unsigned long long sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < n_pairs; at += stride) {
    const uint4 pair = load16(words + 16 * at);
    sum += (static_cast<unsigned long long>(pair.y) << 32 | pair.x) + (static_cast<unsigned long long>(pair.w) << 32 | pair.z);
  }
  __shared__ unsigned long long of_block;
  if (threadIdx.x == 0) of_block = 0;
  __syncthreads();
  atomicAdd(&of_block, sum);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(out, of_block);
}

}  // namespace
}  // namespace pshard
