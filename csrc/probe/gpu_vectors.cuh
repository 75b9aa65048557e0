// Products with few rows of activations: one block of threads per row of weights, which multiplies codes with 8-bit activations as it reads
// them.
#pragma once

#include "probe/gpu_dots.cuh"
#include "probe/gpu_routing.cuh"

namespace pshard {
namespace {

constexpr int kVectorWarps = 4;  // that share one row of weights

// One warp for each kRoundedColumns values.
__global__ void round_to_bytes(const float* x, int64_t n_values, int8_t* codes, float2* scales) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= n_values) return;  // whole warps: n_values is a multiple of a warp
  const float value = x[at];
  const float largest = warp_max(fabsf(value));
  const float inverse = largest > 0.0F ? 127.0F / largest : 0.0F;
  const int code = isfinite(inverse) ? __float2int_rn(value * inverse) : 0;
  const float scale = isfinite(inverse) ? largest / 127.0F : 0.0F;
  const float sum = warp_sum(static_cast<float>(code));
  codes[at] = static_cast<int8_t>(code);
  if (threadIdx.x % kWarp == 0) scales[at / kRoundedColumns] = float2{scale, scale * sum};
}

__global__ void round_to_halves(const float* x, int64_t n_values, uint16_t* halves) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < n_values) halves[at] = to_half(x[at]);
}

// Block (row of weights, row of y); n > 1 only without routing, for rows 0 to n - 1.
template <WeightType type, int n>
__global__ void vector_product(const uint8_t* weights, Rounded x, Routing routing, float* y, int n_rows, int n_columns, int64_t row_bytes) {
  __shared__ float parts[kVectorWarps][n];
  const int row = static_cast<int>(blockIdx.x);
  const int out = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  int64_t from = 0;
  if (routing.ids != nullptr) {
    weights += routing.ids[out] * routing.matrix_bytes;
    from = static_cast<int64_t>(out / routing.rows_per_token) * n_columns;
  }
  float sums[n] = {};
  const uint8_t* weights_row = weights + row * row_bytes;
  for (int slice = thread; slice < n_columns / Dot<type>::columns; slice += kVectorWarps * kWarp) {
    Dot<type>::add(weights_row, slice, x, from, n_columns, sums);
  }
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const float sum = warp_sum(sums[j]);
    if (thread % kWarp == 0) parts[thread / kWarp][j] = sum;
  }
  __syncthreads();
  if (thread < n) {
    float sum = 0.0F;
    for (int warp = 0; warp < kVectorWarps; ++warp) sum += parts[warp][thread];
    y[static_cast<int64_t>(out + thread) * n_rows + row] = sum;
  }
}

}  // namespace
}  // namespace pshard
