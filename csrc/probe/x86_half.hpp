// Products with F16 rows, over a type V of vectors: V::Floats, V::kLanes, and load_half, store_half, broadcast, mul, add, fma, zero, sum,
// load, store.
#pragma once

#include "probe/kernels.hpp"

namespace pshard {
namespace {

template <typename V, int kRows, int kColumns>
inline void half_tile(const uint16_t* rows, int64_t row_stride, const uint16_t* x, int64_t x_stride, int64_t n_columns, float* out,
                      int64_t out_stride) {
  typename V::Floats sums[kRows][kColumns];
  for (auto& row : sums) {
    for (auto& sum : row) sum = V::zero();
  }
  for (int64_t at = 0; at < n_columns; at += V::kLanes) {
    typename V::Floats xs[kColumns];
    for (int c = 0; c < kColumns; ++c) xs[c] = V::load_half(x + c * x_stride + at);
    for (int r = 0; r < kRows; ++r) {
      const typename V::Floats row = V::load_half(rows + r * row_stride + at);
      for (int c = 0; c < kColumns; ++c) sums[r][c] = V::fma(row, xs[c], sums[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) out[c * out_stride + r] = V::sum(sums[r][c]);
  }
}

// Four sums, so that none waits for the one before.
template <typename V>
inline float half_dot(const uint16_t* row, const uint16_t* x, int64_t n_columns) {
  constexpr int kSums = 4;
  typename V::Floats sums[kSums];
  for (auto& sum : sums) sum = V::zero();
  int64_t at = 0;
  for (; at + kSums * V::kLanes <= n_columns; at += kSums * V::kLanes) {
    for (int s = 0; s < kSums; ++s) {
      sums[s] = V::fma(V::load_half(row + at + s * V::kLanes), V::load_half(x + at + s * V::kLanes), sums[s]);
    }
  }
  for (; at < n_columns; at += V::kLanes) sums[0] = V::fma(V::load_half(row + at), V::load_half(x + at), sums[0]);
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}

template <typename V, int kRows>
inline void half_columns(const uint16_t* rows, int64_t row_stride, Rows<const uint16_t> x, int64_t n_columns, Rows<float> out) {
  int64_t j = 0;
  for (; j + V::kHalfColumns <= x.n; j += V::kHalfColumns) {
    half_tile<V, kRows, V::kHalfColumns>(rows, row_stride, x.data + j * x.stride, x.stride, n_columns, out.data + j * out.stride,
                                         out.stride);
  }
  for (; j < x.n; ++j)
    half_tile<V, kRows, 1>(rows, row_stride, x.data + j * x.stride, x.stride, n_columns, out.data + j * out.stride, out.stride);
}

template <typename V>
void half_products(Rows<const uint16_t> rows, Rows<const uint16_t> x, int64_t n_columns, Rows<float> out) {
  int64_t i = 0;
  if (x.n == 1) {  // one row of weights after the other, in the order of memory
    for (; i < rows.n; ++i) out.data[i] = half_dot<V>(rows.data + i * rows.stride, x.data, n_columns);
    return;
  }
  for (; i + V::kHalfRows <= rows.n; i += V::kHalfRows) {
    half_columns<V, V::kHalfRows>(rows.data + i * rows.stride, rows.stride, x, n_columns, {out.data + i, out.stride, out.n});
  }
  for (; i < rows.n; ++i) half_columns<V, 1>(rows.data + i * rows.stride, rows.stride, x, n_columns, {out.data + i, out.stride, out.n});
}

template <typename V, int kOut, int kVectors>
inline void mix_tile(const float* shares, int64_t share_stride, Rows<const uint16_t> rows, int64_t at, float* out, int64_t out_stride) {
  typename V::Floats sums[kOut][kVectors];
  for (int j = 0; j < kOut; ++j) {
    for (int v = 0; v < kVectors; ++v) sums[j][v] = V::load(out + j * out_stride + at + v * V::kLanes);
  }
  for (int64_t i = 0; i < rows.n; ++i) {
    typename V::Floats row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = V::load_half(rows.data + i * rows.stride + at + v * V::kLanes);
    for (int j = 0; j < kOut; ++j) {
      const typename V::Floats share = V::broadcast(shares[j * share_stride + i]);
      for (int v = 0; v < kVectors; ++v) sums[j][v] = V::fma(share, row[v], sums[j][v]);
    }
  }
  for (int j = 0; j < kOut; ++j) {
    for (int v = 0; v < kVectors; ++v) V::store(out + j * out_stride + at + v * V::kLanes, sums[j][v]);
  }
}

template <typename V, int kOut>
inline void mix_columns(const float* shares, int64_t share_stride, Rows<const uint16_t> rows, int64_t n_columns, float* out,
                        int64_t out_stride) {
  int64_t at = 0;
  for (; at + V::kMixVectors * V::kLanes <= n_columns; at += V::kMixVectors * V::kLanes) {
    mix_tile<V, kOut, V::kMixVectors>(shares, share_stride, rows, at, out, out_stride);
  }
  for (; at < n_columns; at += V::kLanes) mix_tile<V, kOut, 1>(shares, share_stride, rows, at, out, out_stride);
}

template <typename V>
void half_mix(Rows<const float> shares, Rows<const uint16_t> rows, int64_t n_columns, Rows<float> out) {
  int64_t j = 0;
  for (; j + V::kMixRows <= out.n; j += V::kMixRows) {
    mix_columns<V, V::kMixRows>(shares.data + j * shares.stride, shares.stride, rows, n_columns, out.data + j * out.stride, out.stride);
  }
  for (; j < out.n; ++j) {
    mix_columns<V, 1>(shares.data + j * shares.stride, shares.stride, rows, n_columns, out.data + j * out.stride, out.stride);
  }
}

template <typename V>
void multiply_halves(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                     int64_t out_stride, uint8_t* /*scratch*/) {
  const int64_t k = x.n_columns;
  const auto* rows = reinterpret_cast<const uint16_t*>(weights);
  for (int64_t j = first; j < last; j += kNearRows) {
    const int64_t n = last - j < kNearRows ? last - j : kNearRows;
    half_products<V>({rows, k, n_rows}, {x.halves + j * k, k, n}, k, {out + j * out_stride, out_stride, n});
  }
}

}  // namespace
}  // namespace pshard
