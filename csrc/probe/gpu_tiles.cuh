// Products with many rows of activations: tiles of weights and activations pass through shared memory, in several stages of copies that
// nobody waits for until they are multiplied, and are multiplied by the matrix units.
#pragma once

#include <type_traits>

#include "probe/gpu_pieces.cuh"
#include "probe/gpu_routing.cuh"

namespace pshard {
namespace {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int kTileRows = 128;  // of weights
constexpr int kTileColumns = kPieceColumns;
constexpr int kTileStride = kTileColumns + 8;  // halves from one row of activations to the next: 8 rows in different banks
constexpr int kSharedBytes = 48 << 10;         // that a block has without asking for more
constexpr int kMostStages = 4;

template <WeightType type, int tile_batch>
struct Tile {
  static constexpr int warps_over_batch = tile_batch > 32 ? 2 : 1;
  static constexpr int warp_batch = tile_batch / warps_over_batch;
  static constexpr int warp_rows = kTileRows * warps_over_batch / kTileWarps;
  static constexpr int row_groups = warp_rows / 16;

  static constexpr bool is_decoded_before = Piece<type>::is_decoded_before;  // before it lies in shared memory; otherwise when multiplied
  using Kept = std::conditional_t<is_decoded_before, Slice<type>, NoSlice>;
  static_assert(kTileRows * kTileColumns == kTileThreads * kSliceColumns, "each thread decodes one slice of a stage");

  static constexpr int weight_words = kTileRows * Piece<type>::words;
  static constexpr int x_halves = tile_batch * kTileStride;
  static constexpr int stage_bytes = 4 * weight_words + 2 * x_halves;
  static constexpr int stages = kSharedBytes / stage_bytes < kMostStages ? kSharedBytes / stage_bytes : kMostStages;
  static_assert(stages >= 2, "one stage is copied while another is multiplied");

  static constexpr int weight_copies = is_decoded_before ? 0 : kTileRows * Piece<type>::copies;
  static constexpr int weight_copies_per_thread = (kTileRows * Piece<type>::copies + kTileThreads - 1) / kTileThreads;
  static constexpr int x_copies = tile_batch * kTileColumns / 8;  // of 16 bytes
  static constexpr int x_copies_per_thread = (x_copies + kTileThreads - 1) / kTileThreads;
};

// In the order that tiles multiply columns in.
__global__ void round_to_tile_halves(const float* x, int64_t n_values, uint16_t* halves) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < n_values) halves[place_in_tile(at)] = to_half(x[at]);  // rows are multiples of 16
}

struct TileArguments {
  const uint8_t* weights;
  const uint16_t* x;  // [.][n_columns], columns in the order of tiles
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
__global__ void __launch_bounds__(kTileThreads, 2) tile_product(const TileArguments of) {
  using T = Tile<type, tile_batch>;
  __shared__ __align__(16) uint32_t weight_stages[T::stages][T::weight_words];
  __shared__ __align__(16) uint16_t x_stages[T::stages][T::x_halves];

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int first_batch = static_cast<int>(blockIdx.x) * tile_batch;
  const int first_row = static_cast<int>(blockIdx.y) * kTileRows;
  const int z = static_cast<int>(blockIdx.z);
  int n_batch = of.batch;
  int begin = 0;
  int end = of.n_columns;
  const uint8_t* weights = of.weights + first_row * of.row_bytes;
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

  // What this thread copies of each stage.
  const int last_row = of.n_rows - 1 - first_row;
  const auto bytes_to = [&](int row) { return static_cast<int>(min(row, last_row) * of.row_bytes); };
  int row_offsets[T::weight_copies_per_thread];
#pragma unroll
  for (int i = 0; i < T::weight_copies_per_thread; ++i) row_offsets[i] = bytes_to((thread + i * kTileThreads) / Piece<type>::copies);
  const uint16_t* x_rows[T::x_copies_per_thread];
#pragma unroll
  for (int i = 0; i < T::x_copies_per_thread; ++i) {
    const int row = min(first_batch + (thread + i * kTileThreads) / 4, n_batch - 1);
    const int token = order != nullptr ? order[row] / of.routing.rows_per_token : row;
    x_rows[i] = of.x + static_cast<int64_t>(token) * of.n_columns + thread % 4 * 8;
  }
  const auto copy = [&](int stage, int column) {
    if (column < end) {
#pragma unroll
      for (int i = 0; i < T::weight_copies_per_thread; ++i) {
        const int index = thread + i * kTileThreads;
        if (index >= T::weight_copies) break;
        Piece<type>::copy(weight_stages[stage] + index / Piece<type>::copies * Piece<type>::words, weights + row_offsets[i],
                          column / kPieceColumns, index % Piece<type>::copies);
      }
#pragma unroll
      for (int i = 0; i < T::x_copies_per_thread; ++i) {
        const int index = thread + i * kTileThreads;
        if (index < T::x_copies) copy_async16(x_stages[stage] + index / 4 * kTileStride + index % 4 * 8, x_rows[i] + column);
      }
    }
    end_of_async_group();
  };

  const uint8_t* const slice_row = weights + bytes_to(thread / 2);
  const auto load_slice = [&](int column) { return T::Kept::load(slice_row, column / kSliceColumns + thread % 2); };
  const auto keep_slice = [&](int stage, const typename T::Kept& slice) {
    uint32_t halves[4][2];
    slice.decode(halves);
    uint32_t* to = weight_stages[stage] + thread / 2 * Piece<type>::words + thread % 2 * (kSliceColumns / 2);
    store16(to, {halves[0][0], halves[0][1], halves[1][0], halves[1][1]});
    store16(to + 4, {halves[2][0], halves[2][1], halves[3][0], halves[3][1]});
  };

  const int warp_row = warp / T::warps_over_batch * T::warp_rows;
  const int warp_batch = warp % T::warps_over_batch * T::warp_batch;
  unsigned late_rows = 0;  // of those that this lane decodes
#pragma unroll
  for (int i = 0; i < 2 * T::row_groups; ++i) {
    late_rows |= static_cast<unsigned>(is_late(weights + bytes_to(warp_row + 8 * i + lane / 4))) << i;
  }

  float sums[T::row_groups][T::warp_batch / 8][4] = {};
  for (int i = 0; i < T::stages - 1; ++i) {
    const int column = begin + i * kTileColumns;
    copy(i, column);
    if (T::is_decoded_before && column < end) keep_slice(i, load_slice(column));
  }
  int stage = 0;
  int next_stage = T::stages - 1;
  for (int column = begin; column < end; column += kTileColumns) {
    wait_for_async_groups<T::stages - 2>();
    __syncthreads();
    const int next_column = column + (T::stages - 1) * kTileColumns;
    copy(next_stage, next_column);  // where all have multiplied a step ago
    typename T::Kept slice;
    if (T::is_decoded_before && next_column < end) slice = load_slice(next_column);

    const int piece = column / kPieceColumns;
    uint32_t a[T::row_groups][2][4];
#pragma unroll
    for (int i = 0; i < 2 * T::row_groups; ++i) {
      uint32_t halves[2][2];
      const bool late = Piece<type>::starts_late((late_rows >> i & 1U) != 0, piece);
      Piece<type>::decode(weight_stages[stage] + (warp_row + 8 * i + lane / 4) * Piece<type>::words, piece, late, lane % 4, halves);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        a[i / 2][k][i % 2] = halves[k][0];
        a[i / 2][k][i % 2 + 2] = halves[k][1];
      }
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int j = 0; j < T::warp_batch / 16; ++j) {
        uint32_t b[4];
        const int row = warp_batch + 16 * j + lane / 16 * 8 + lane % 8;
        load_matrices(b, x_stages[stage] + row * kTileStride + 16 * k + lane / 8 % 2 * 8);
#pragma unroll
        for (int i = 0; i < T::row_groups; ++i) {
          multiply_add(sums[i][2 * j], a[i][k], b[0], b[1]);
          multiply_add(sums[i][2 * j + 1], a[i][k], b[2], b[3]);
        }
      }
    }
    if (T::is_decoded_before && next_column < end) keep_slice(next_stage, slice);
    stage = stage + 1 == T::stages ? 0 : stage + 1;
    next_stage = next_stage + 1 == T::stages ? 0 : next_stage + 1;
  }

#pragma unroll
  for (int i = 0; i < T::row_groups; ++i) {
#pragma unroll
    for (int j = 0; j < T::warp_batch / 8; ++j) {
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

}  // namespace
}  // namespace pshard
