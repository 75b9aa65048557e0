// Products of quantised weights on the GPU. Few rows of activations: one block of threads per row of weights, which multiplies codes with
// 8-bit activations as it reads them. More: tiles of weights are decoded to halves in shared memory and multiplied by the matrix units.
#pragma once

#include "probe/gpu_decode.cuh"

namespace pshard {
namespace {

constexpr int kVectorWarps = 4;  // that share one row of weights

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int kTileRows = 128;                 // of weights
constexpr int kTileColumns = 32;               // between two barriers
constexpr int kTileStride = kTileColumns + 8;  // rows of a tile start in different banks
constexpr int kWarpBatch = 32;                 // rows of activations that a warp multiplies
static_assert(kTileRows * kTileColumns == kTileThreads * kSliceColumns, "each thread decodes one slice of a tile");

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

// Which rows of activations a product takes, and with which matrix.
struct Routing {
  const int32_t* ids;    // of each row of y, its expert; null: one matrix
  const int32_t* first;  // tiles: [n_experts + 1], where the rows of an expert begin in `order`
  const int32_t* order;  // tiles: rows of y by expert
  int64_t matrix_bytes;
  int rows_per_token;  // of y, for each row of activations
};

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

struct TileArguments {
  const uint8_t* weights;
  const uint16_t* x;  // [.][n_columns]
  float* y;           // [batch][n_rows], for each part of the columns
  Routing routing;
  int64_t row_bytes;
  int n_rows;
  int n_columns;
  int batch;         // without routing: rows of y
  int part_columns;  // that one block sums, a multiple of kTileColumns
};

// Block (rows of y, rows of weights, part of the columns or expert). Rows beyond the last are the last again, and not written.
template <WeightType type, int tile_batch>
__global__ void __launch_bounds__(kTileThreads) tile_product(const TileArguments of) {
  constexpr int warps_over_batch = tile_batch / kWarpBatch;
  constexpr int warp_rows = kTileRows * warps_over_batch / kTileWarps;
  constexpr int row_pieces = warp_rows / 16;
  constexpr int loads = tile_batch * kTileColumns / 8;  // of 16 bytes
  constexpr int loads_per_thread = (loads + kTileThreads - 1) / kTileThreads;
  __shared__ __align__(16) uint16_t weight_tiles[2][kTileRows * kTileStride];
  __shared__ __align__(16) uint16_t x_tiles[2][tile_batch * kTileStride];

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int first_batch = static_cast<int>(blockIdx.x) * tile_batch;
  const int first_row = static_cast<int>(blockIdx.y) * kTileRows;
  const int z = static_cast<int>(blockIdx.z);
  int n_batch = of.batch;
  int begin = 0;
  int end = of.n_columns;
  const uint8_t* weights = of.weights;
  float* y = of.y;
  const int32_t* order = nullptr;
  if (of.routing.first != nullptr) {
    order = of.routing.order + of.routing.first[z];
    n_batch = of.routing.first[z + 1] - of.routing.first[z];
    weights += z * of.routing.matrix_bytes;
  } else {
    begin = z * of.part_columns;
    end = min(begin + of.part_columns, of.n_columns);
    y += static_cast<int64_t>(z) * of.batch * of.n_rows;
  }
  if (first_batch >= n_batch) return;  // the whole block

  const uint8_t* weights_row = weights + min(first_row + thread / 2, of.n_rows - 1) * of.row_bytes;
  const uint16_t* x_rows[loads_per_thread];
#pragma unroll
  for (int i = 0; i < loads_per_thread; ++i) {
    const int row = min(first_batch + (thread + i * kTileThreads) / 4, n_batch - 1);
    const int token = order != nullptr ? order[row] / of.routing.rows_per_token : row;
    x_rows[i] = of.x + static_cast<int64_t>(token) * of.n_columns + thread % 4 * 8;
  }
  Slice<type> slice;
  uint4 x_pieces[loads_per_thread];
  const auto read = [&](int column) {
    slice = Slice<type>::load(weights_row, column / kSliceColumns + thread % 2);
#pragma unroll
    for (int i = 0; i < loads_per_thread; ++i) {
      if (thread + i * kTileThreads < loads) x_pieces[i] = load16(x_rows[i] + column);
    }
  };
  const auto keep = [&](int buffer) {
    uint4 halves[2];
    slice.decode(halves);
    uint16_t* at = weight_tiles[buffer] + thread / 2 * kTileStride + thread % 2 * kSliceColumns;
    store16(at, halves[0]);
    store16(at + 8, halves[1]);
#pragma unroll
    for (int i = 0; i < loads_per_thread; ++i) {
      const int load = thread + i * kTileThreads;
      if (load < loads) store16(x_tiles[buffer] + load / 4 * kTileStride + load % 4 * 8, x_pieces[i]);
    }
  };

  const int warp_row = warp / warps_over_batch * warp_rows;
  const int warp_batch = warp % warps_over_batch * kWarpBatch;
  float sums[row_pieces][kWarpBatch / 8][4] = {};
  read(begin);
  keep(0);
  __syncthreads();
  for (int column = begin, buffer = 0; column < end; column += kTileColumns, buffer ^= 1) {
    const bool is_last = column + kTileColumns >= end;
    if (!is_last) read(column + kTileColumns);
#pragma unroll
    for (int k = 0; k < kTileColumns; k += 16) {
      uint32_t x_pieces_of_warp[kWarpBatch / 16][4];
#pragma unroll
      for (int j = 0; j < kWarpBatch / 16; ++j) {
        const int row = warp_batch + 16 * j + lane / 16 * 8 + lane % 8;
        load_matrices(x_pieces_of_warp[j], x_tiles[buffer] + row * kTileStride + k + lane / 8 % 2 * 8);
      }
#pragma unroll
      for (int i = 0; i < row_pieces; ++i) {
        uint32_t weight_piece[4];
        load_matrices(weight_piece, weight_tiles[buffer] + (warp_row + 16 * i + lane % 16) * kTileStride + k + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < kWarpBatch / 8; ++j) {
          multiply_add(sums[i][j], weight_piece, x_pieces_of_warp[j / 2][j % 2 * 2], x_pieces_of_warp[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    if (!is_last) keep(buffer ^ 1);
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < row_pieces; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpBatch / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int row = first_row + warp_row + 16 * i + lane / 4 + c / 2 * 8;
        const int at = first_batch + warp_batch + 8 * j + lane % 4 * 2 + c % 2;
        if (row < of.n_rows && at < n_batch) y[static_cast<int64_t>(order != nullptr ? order[at] : at) * of.n_rows + row] = sums[i][j][c];
      }
    }
  }
}

// y = the sum of `n_parts` arrays that follow each other.
__global__ void sum_parts(const float* parts, int n_parts, int64_t n_values, float* y) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= n_values) return;
  float sum = 0.0F;
  for (int part = 0; part < n_parts; ++part) sum += parts[part * n_values + at];
  y[at] = sum;
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
