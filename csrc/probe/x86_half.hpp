// Products with rows of F16, and sums of such rows, over a type V of vectors as in x86_numbers.hpp, with store_half, load, store,
// broadcast.
#pragma once

#include "probe/x86_numbers.hpp"

namespace pshard {
namespace {

template <typename V>
inline float half_dot(const uint16_t* row, const uint16_t* x, int64_t n_columns) {
  return number_dot<V, Half>(row, x, n_columns);
}

template <typename V>
void half_products(Rows<const uint16_t> rows, Rows<const uint16_t> x, int64_t n_columns, Rows<float> out) {
  number_products<V, Half>(rows, x, n_columns, out);
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

}  // namespace
}  // namespace pshard
