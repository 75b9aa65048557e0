// Products with rows of F32, F16 or BF16, over a type V of vectors: V::Floats, V::kLanes, and load, load_half, load_bfloat, add, fma, zero,
// sum.
#pragma once

#include <type_traits>

#include "probe/kernels.hpp"

namespace pshard {
namespace {

// How numbers of a type lie in memory, and one vector of them.
template <typename T>
struct Stored {
  using Type = uint16_t;
};
template <>
struct Stored<float> {
  using Type = float;
};
template <typename V, typename T>
inline typename V::Floats load_numbers(const typename Stored<T>::Type* at) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return V::load(at);
  } else if constexpr (std::is_same_v<T, BFloat>) {
    return V::load_bfloat(at);
  } else {
    return V::load_half(at);
  }
}

template <typename V, typename T, int kRows, int kColumns>
inline void number_tile(const typename Stored<T>::Type* rows, int64_t row_stride, const typename Stored<T>::Type* x, int64_t x_stride,
                        int64_t n_columns, float* out, int64_t out_stride) {
  typename V::Floats sums[kRows][kColumns];
  for (auto& row : sums) {
    for (auto& sum : row) sum = V::zero();
  }
  for (int64_t at = 0; at < n_columns; at += V::kLanes) {
    typename V::Floats xs[kColumns];
    for (int c = 0; c < kColumns; ++c) xs[c] = load_numbers<V, T>(x + c * x_stride + at);
    for (int r = 0; r < kRows; ++r) {
      const typename V::Floats row = load_numbers<V, T>(rows + r * row_stride + at);
      for (int c = 0; c < kColumns; ++c) sums[r][c] = V::fma(row, xs[c], sums[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) out[c * out_stride + r] = V::sum(sums[r][c]);
  }
}

// Four sums, so that none waits for the one before.
template <typename V, typename T>
inline float number_dot(const typename Stored<T>::Type* row, const typename Stored<T>::Type* x, int64_t n_columns) {
  constexpr int kSums = 4;
  typename V::Floats sums[kSums];
  for (auto& sum : sums) sum = V::zero();
  int64_t at = 0;
  for (; at + kSums * V::kLanes <= n_columns; at += kSums * V::kLanes) {
    for (int s = 0; s < kSums; ++s) {
      sums[s] = V::fma(load_numbers<V, T>(row + at + s * V::kLanes), load_numbers<V, T>(x + at + s * V::kLanes), sums[s]);
    }
  }
  for (; at < n_columns; at += V::kLanes) sums[0] = V::fma(load_numbers<V, T>(row + at), load_numbers<V, T>(x + at), sums[0]);
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}

template <typename V, typename T, int kRows>
inline void number_columns(const typename Stored<T>::Type* rows, int64_t row_stride, Rows<const typename Stored<T>::Type> x,
                           int64_t n_columns, Rows<float> out) {
  int64_t j = 0;
  for (; j + V::kHalfColumns <= x.n; j += V::kHalfColumns) {
    number_tile<V, T, kRows, V::kHalfColumns>(rows, row_stride, x.data + j * x.stride, x.stride, n_columns, out.data + j * out.stride,
                                              out.stride);
  }
  for (; j < x.n; ++j) {
    number_tile<V, T, kRows, 1>(rows, row_stride, x.data + j * x.stride, x.stride, n_columns, out.data + j * out.stride, out.stride);
  }
}

template <typename V, typename T>
inline void number_products(Rows<const typename Stored<T>::Type> rows, Rows<const typename Stored<T>::Type> x, int64_t n_columns,
                            Rows<float> out) {
  int64_t i = 0;
  if (x.n == 1) {  // one row of weights after the other, in the order of memory
    for (; i < rows.n; ++i) out.data[i] = number_dot<V, T>(rows.data + i * rows.stride, x.data, n_columns);
    return;
  }
  for (; i + V::kHalfRows <= rows.n; i += V::kHalfRows) {
    number_columns<V, T, V::kHalfRows>(rows.data + i * rows.stride, rows.stride, x, n_columns, {out.data + i, out.stride, out.n});
  }
  for (; i < rows.n; ++i) {
    number_columns<V, T, 1>(rows.data + i * rows.stride, rows.stride, x, n_columns, {out.data + i, out.stride, out.n});
  }
}

template <typename V, typename T>
void multiply_numbers(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                      int64_t out_stride, uint8_t* /*scratch*/) {
  using Number = typename Stored<T>::Type;
  const int64_t k = x.n_columns;
  const auto* rows = reinterpret_cast<const Number*>(weights);
  for (int64_t j = first; j < last; j += kNearRows) {
    const int64_t n = last - j < kNearRows ? last - j : kNearRows;
    const Number* from;
    if constexpr (sizeof(T) == sizeof(float)) {
      from = x.floats + j * k;
    } else {
      from = x.halves + j * k;
    }
    number_products<V, T>({rows, k, n_rows}, {from, k, n}, k, {out + j * out_stride, out_stride, n});
  }
}

}  // namespace
}  // namespace pshard
