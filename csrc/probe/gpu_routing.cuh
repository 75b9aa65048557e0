// Which expert multiplies which row of activations, on the GPU.
#pragma once

#include "probe/gpu_language.cuh"

namespace pshard {
namespace {

// Which rows of activations a product takes, and with which matrix.
struct Routing {
  const int32_t* ids;    // of each row of y, its expert; null: one matrix
  const int32_t* first;  // tiles: [n_experts + 1], where the rows of an expert begin in `order`
  const int32_t* order;  // tiles: rows of y by expert
  int64_t matrix_bytes;
  int rows_per_token;  // of y, for each row of activations
};

__global__ void copy_words_of(const uint32_t* from, int64_t n_words, uint32_t* to) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < n_words) to[at] = from[at];
}

constexpr int kMaxExperts = 1024;

// One block of kMaxExperts threads sorts the rows of y by expert.
__global__ void __launch_bounds__(kMaxExperts)
    group_by_expert(const int32_t* ids, int n_ids, int n_experts, int32_t* first, int32_t* order) {
  __shared__ int counts[kMaxExperts];
  const int thread = static_cast<int>(threadIdx.x);
  counts[thread] = 0;
  __syncthreads();
  for (int i = thread; i < n_ids; i += kMaxExperts) atomicAdd(&counts[ids[i]], 1);
  __syncthreads();
  const int mine = counts[thread];
  for (int step = 1; step < kMaxExperts; step *= 2) {
    const int before = thread >= step ? counts[thread - step] : 0;
    __syncthreads();
    counts[thread] += before;
    __syncthreads();
  }
  const int through = counts[thread];
  if (thread == 0) first[0] = 0;
  if (thread < n_experts) first[thread + 1] = through;
  __syncthreads();
  counts[thread] = through - mine;
  __syncthreads();
  for (int i = thread; i < n_ids; i += kMaxExperts) order[atomicAdd(&counts[ids[i]], 1)] = i;
}

}  // namespace
}  // namespace pshard
