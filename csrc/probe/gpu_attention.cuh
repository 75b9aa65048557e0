// Fused attention on the GPU over an F16 cache, after FlashAttention (Dao et al., arXiv 2205.14135, 2307.08691) and its split over the
// cache for few query tokens: scores in blocks of cells, a running maximum, and sums that shrink when it grows.
#pragma once

#include "probe/gpu_language.cuh"

namespace pshard {
namespace {

constexpr float kLog2E = 1.44269504F;  // scores are powers of two
constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / kWarp;
constexpr int kSplitCells = 64;  // that few query tokens look at between two barriers
constexpr int kDotLanes = 8;     // that share one dot product
constexpr int kQueryTile = 64;   // query tokens of a block, 16 for each warp

struct AttentionArguments {
  const float* queries;  // [batch][n_heads][head]
  const uint16_t* keys;  // [depth][n_kv_heads][head]
  const uint16_t* values;
  float* out;      // as queries
  float* sums;     // [n_splits][batch][n_heads][head], not yet divided
  float2* totals;  // [n_splits][batch][n_heads]: largest score, sum of shares
  int batch;
  int depth;
  int n_heads;
  int n_kv_heads;
  bool is_causal;
  int n_splits;
  int cells_per_split;  // a multiple of kSplitCells
  float scale;          // of scores, log2(e) included

  __device__ int visible(int token) const { return is_causal ? depth - batch + token + 1 : depth; }
};

// Block (group of n heads with the same keys, split, query token).
template <int head, int n>
__global__ void __launch_bounds__(kAttentionThreads) attend_split(const AttentionArguments of) {
  constexpr int lanes_per_cell = head / 4;                           // when values are summed
  constexpr int cells_at_once = kAttentionThreads / lanes_per_cell;  // threads beyond them have none
  constexpr int cells_dotted_at_once = kAttentionThreads / kDotLanes;
  __shared__ float queries[n][head];
  __shared__ float shares[n][kSplitCells];
  __shared__ float largest[n];
  __shared__ float total[n];
  __shared__ float shrink[n];
  __shared__ float parts[cells_at_once][n][head];
  const int thread = static_cast<int>(threadIdx.x);
  const int first_head = static_cast<int>(blockIdx.x) * n;
  const int split = static_cast<int>(blockIdx.y);
  const int token = static_cast<int>(blockIdx.z);
  const int kv_head = first_head / (of.n_heads / of.n_kv_heads);
  const int64_t cell_values = static_cast<int64_t>(of.n_kv_heads) * head;
  const uint16_t* keys = of.keys + kv_head * head;
  const uint16_t* values = of.values + kv_head * head;
  const int64_t row = static_cast<int64_t>(token) * of.n_heads + first_head;
  const int begin = split * of.cells_per_split;
  const int end = min(begin + of.cells_per_split, of.visible(token));

  for (int i = thread; i < n * head; i += kAttentionThreads) queries[i / head][i % head] = of.queries[row * head + i] * of.scale;
  if (thread < n) {
    largest[thread] = -INFINITY;
    total[thread] = 0.0F;
  }
  __syncthreads();

  const int value_lane = thread % lanes_per_cell;
  const int value_cell = thread / lanes_per_cell;
  float sums[n][4] = {};
  for (int first = begin; first < end; first += kSplitCells) {
    const int n_cells = min(kSplitCells, end - first);
    // Memory answers late: loops are unrolled, so that all of their loads are on their way at once.
#pragma unroll
    for (int step = 0; step < kSplitCells / cells_dotted_at_once; ++step) {
      const int i = thread / kDotLanes + step * cells_dotted_at_once;
      const uint16_t* key = keys + min(first + i, end - 1) * cell_values;
      float dots[n] = {};
#pragma unroll
      for (int piece = 0; piece < head / (4 * kDotLanes); ++piece) {
        const int at = 4 * (thread % kDotLanes + piece * kDotLanes);
        const uint2 words = load8(key + at);
        const float k[4] = {to_float(static_cast<uint16_t>(words.x & 0xffffU)), to_float(static_cast<uint16_t>(words.x >> 16)),
                            to_float(static_cast<uint16_t>(words.y & 0xffffU)), to_float(static_cast<uint16_t>(words.y >> 16))};
#pragma unroll
        for (int j = 0; j < n; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) dots[j] += k[c] * queries[j][at + c];
        }
      }
#pragma unroll
      for (int j = 0; j < n; ++j) {
#pragma unroll
        for (int mask = kDotLanes / 2; mask > 0; mask /= 2) dots[j] += from_lane_xor(dots[j], mask);
        if (thread % kDotLanes == 0) shares[j][i] = i < n_cells ? dots[j] : -INFINITY;
      }
    }
    __syncthreads();
    for (int j = thread / kWarp; j < n; j += kAttentionWarps) {
      const int lane = thread % kWarp;
      const float before = lane == 0 ? largest[j] : -INFINITY;  // only the first lane reads what it writes below
      float most = before;
      for (int i = lane; i < kSplitCells; i += kWarp) most = fmaxf(most, shares[j][i]);
      const float now = warp_max(most);
      float sum = 0.0F;
      for (int i = lane; i < kSplitCells; i += kWarp) {
        const float share = exp2f(shares[j][i] - now);
        shares[j][i] = share;
        sum += share;
      }
      sum = warp_sum(sum);
      if (lane == 0) {
        shrink[j] = exp2f(before - now);
        largest[j] = now;
        total[j] = total[j] * shrink[j] + sum;
      }
    }
    __syncthreads();
    if (value_cell < cells_at_once) {
#pragma unroll
      for (int j = 0; j < n; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[j][c] *= shrink[j];
      }
#pragma unroll 8
      for (int step = 0; step < (kSplitCells + cells_at_once - 1) / cells_at_once; ++step) {  // what is beyond the last has no share
        const int i = value_cell + step * cells_at_once;
        const uint2 words = load8(values + min(first + i, end - 1) * cell_values + 4 * value_lane);
        const float v[4] = {to_float(static_cast<uint16_t>(words.x & 0xffffU)), to_float(static_cast<uint16_t>(words.x >> 16)),
                            to_float(static_cast<uint16_t>(words.y & 0xffffU)), to_float(static_cast<uint16_t>(words.y >> 16))};
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const float share = i < kSplitCells ? shares[j][i] : 0.0F;
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[j][c] += share * v[c];
        }
      }
    }
    __syncthreads();
  }

  if (value_cell < cells_at_once) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) parts[value_cell][j][4 * value_lane + c] = sums[j][c];
    }
  }
  __syncthreads();
  const int64_t out = static_cast<int64_t>(split) * of.batch * of.n_heads + row;
  for (int i = thread; i < n * head; i += kAttentionThreads) {
    float sum = 0.0F;
    for (int cell = 0; cell < cells_at_once; ++cell) sum += parts[cell][i / head][i % head];
    of.sums[out * head + i] = sum;
  }
  if (thread < n) of.totals[out + thread] = float2{largest[thread], total[thread]};
}

// Block (head, query token), one thread for each value: joins the splits.
__global__ void join_splits(const AttentionArguments of, int head) {
  const int64_t row = static_cast<int64_t>(blockIdx.y) * of.n_heads + blockIdx.x;
  const int64_t rows = static_cast<int64_t>(of.batch) * of.n_heads;
  float largest = -INFINITY;
#pragma unroll 8
  for (int split = 0; split < of.n_splits; ++split) largest = fmaxf(largest, of.totals[split * rows + row].x);
  float total = 0.0F;
  float sum = 0.0F;
#pragma unroll 8
  for (int split = 0; split < of.n_splits; ++split) {
    const float2 part = of.totals[split * rows + row];
    const float share = exp2f(part.x - largest);  // 0 where the split saw no cell
    total += share * part.y;
    sum += share * of.sums[(split * rows + row) * head + threadIdx.x];
  }
  of.out[row * head + threadIdx.x] = sum / total;
}

// Block (tile of query tokens, head). A warp holds 16 query tokens: of rows lane / 4 and 8 more, the scores and sums at lane % 4.
template <int head>
__global__ void __launch_bounds__(kAttentionThreads) attend_tile(const AttentionArguments of) {
  constexpr int n_cells = head <= 128 ? 64 : 32;
  constexpr int stride = head + 8;  // rows start in different banks
  constexpr int loads_per_row = head / 8;
  __shared__ __align__(16) uint16_t keys[n_cells * stride];
  __shared__ __align__(16) uint16_t values[n_cells * stride];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int first_token = static_cast<int>(blockIdx.x) * kQueryTile;
  const int query_head = static_cast<int>(blockIdx.y);
  const int kv_head = query_head / (of.n_heads / of.n_kv_heads);
  const int64_t cell_values = static_cast<int64_t>(of.n_kv_heads) * head;

  int tokens[2];
  int visible[2];
  uint32_t queries[head / 16][4];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    tokens[r] = first_token + thread / kWarp * 16 + lane / 4 + 8 * r;
    const int token = min(tokens[r], of.batch - 1);
    visible[r] = of.visible(token);
    const float* query = of.queries + (static_cast<int64_t>(token) * of.n_heads + query_head) * head;
#pragma unroll
    for (int k = 0; k < head / 16; ++k) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int at = 16 * k + 8 * part + lane % 4 * 2;
        queries[k][r + 2 * part] = pack_halves(query[at] * of.scale, query[at + 1] * of.scale);
      }
    }
  }
  float sums[head / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float totals[2] = {};  // of this lane's cells
  const int end = of.visible(min(first_token + kQueryTile, of.batch) - 1);

  for (int first = 0; first < end; first += n_cells) {
    for (int i = thread; i < n_cells * loads_per_row; i += kAttentionThreads) {
      const int cell = i / loads_per_row;
      const int at = i % loads_per_row * 8;
      const int64_t from = min(first + cell, of.depth - 1) * cell_values + kv_head * head + at;
      store16(keys + cell * stride + at, load16(of.keys + from));
      store16(values + cell * stride + at, load16(of.values + from));
    }
    __syncthreads();

    float scores[n_cells / 8][4] = {};
#pragma unroll
    for (int k = 0; k < head / 16; ++k) {
#pragma unroll
      for (int j = 0; j < n_cells / 16; ++j) {
        uint32_t piece[4];
        load_matrices(piece, keys + (16 * j + lane / 16 * 8 + lane % 8) * stride + 16 * k + lane / 8 % 2 * 8);
        multiply_add(scores[2 * j], queries[k], piece[0], piece[1]);
        multiply_add(scores[2 * j + 1], queries[k], piece[2], piece[3]);
      }
    }
    float most[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < n_cells / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (first + 8 * j + lane % 4 * 2 + c % 2 >= visible[c / 2]) scores[j][c] = -INFINITY;
        most[c / 2] = fmaxf(most[c / 2], scores[j][c]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], from_lane_xor(most[r], 1));
      most[r] = fmaxf(most[r], from_lane_xor(most[r], 2));
      const float shrink = exp2f(largest[r] - most[r]);  // the first cell is visible to all, so that the maximum is finite
      largest[r] = most[r];
      totals[r] *= shrink;
#pragma unroll
      for (int d = 0; d < head / 8; ++d) {
        sums[d][2 * r] *= shrink;
        sums[d][2 * r + 1] *= shrink;
      }
    }
#pragma unroll
    for (int j = 0; j < n_cells / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[j][c] = exp2f(scores[j][c] - largest[c / 2]);
        totals[c / 2] += scores[j][c];
      }
    }
#pragma unroll
    for (int j = 0; j < n_cells / 16; ++j) {
      const uint32_t shares[4] = {pack_halves(scores[2 * j][0], scores[2 * j][1]), pack_halves(scores[2 * j][2], scores[2 * j][3]),
                                  pack_halves(scores[2 * j + 1][0], scores[2 * j + 1][1]),
                                  pack_halves(scores[2 * j + 1][2], scores[2 * j + 1][3])};
#pragma unroll
      for (int d = 0; d < head / 16; ++d) {
        uint32_t piece[4];
        load_matrices_transposed(piece, values + (16 * j + lane % 16) * stride + 16 * d + lane / 16 * 8);
        multiply_add(sums[2 * d], shares, piece[0], piece[1]);
        multiply_add(sums[2 * d + 1], shares, piece[2], piece[3]);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    totals[r] += from_lane_xor(totals[r], 1);
    totals[r] += from_lane_xor(totals[r], 2);
    if (tokens[r] >= of.batch) continue;
    float* out = of.out + (static_cast<int64_t>(tokens[r]) * of.n_heads + query_head) * head;
#pragma unroll
    for (int d = 0; d < head / 8; ++d) {
      out[8 * d + lane % 4 * 2] = sums[d][2 * r] / totals[r];
      out[8 * d + lane % 4 * 2 + 1] = sums[d][2 * r + 1] / totals[r];
    }
  }
}

}  // namespace
}  // namespace pshard
