// Reading memory as fast as it gives, with a sum that proves it.
#pragma once

#include "probe/gpu_language.cuh"

namespace pshard {
namespace {

constexpr int kReadThreads = 256;

__device__ inline unsigned long long sum_of(uint4 pair) {
  return (static_cast<unsigned long long>(pair.y) << 32 | pair.x) + (static_cast<unsigned long long>(pair.w) << 32 | pair.z);
}

// Adds the sum of words of 64 bits to `out`, two words to a load. The pointer is aligned to 16 bytes.
__global__ void __launch_bounds__(kReadThreads) sum_words(const uint8_t* words, int64_t n_pairs, unsigned long long* out) {
  constexpr int at_once = 4;  // loads that a thread waits for together
  unsigned long long sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; at + (at_once - 1) * stride < n_pairs; at += at_once * stride) {
    uint4 pairs[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) pairs[i] = load16(words + 16 * (at + i * stride));
#pragma unroll
    for (int i = 0; i < at_once; ++i) sum += sum_of(pairs[i]);
  }
  for (; at < n_pairs; at += stride) sum += sum_of(load16(words + 16 * at));
  __shared__ unsigned long long of_block;
  if (threadIdx.x == 0) of_block = 0;
  __syncthreads();
  atomicAdd(&of_block, sum);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(out, of_block);
}

}  // namespace
}  // namespace pshard
