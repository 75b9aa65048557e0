// Rows of recurrent states, over a type V of vectors as in x86_half.hpp; n_columns is a multiple of kScanColumns.
#pragma once

#include "probe/kernels.hpp"

namespace pshard {
namespace {

inline constexpr int kScanVectors = 4;  // sums at once, so that one need not wait for the other

// The sum of what `at` returns for the first column of each vector.
template <typename V, typename At>
float sum_over(int64_t n_columns, At at) {
  typename V::Floats sums[kScanVectors];
  for (auto& sum : sums) sum = V::zero();
  int64_t i = 0;
  for (; i + kScanVectors * V::kLanes <= n_columns; i += kScanVectors * V::kLanes) {
    for (int v = 0; v < kScanVectors; ++v) sums[v] = at(i + v * V::kLanes, sums[v]);
  }
  for (; i < n_columns; i += V::kLanes) sums[0] = at(i, sums[0]);
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}

template <typename V>
void decay_rows(const StateRows& state, float decay, const float* input, const float* key, const float* query, float* out) {
  const auto keep = V::broadcast(decay);
  for (int64_t row = 0; row < state.n_rows; ++row) {
    const float* before = state.before + row * state.n_columns;
    float* after = state.after + row * state.n_columns;
    const auto written = V::broadcast(input[row]);
    out[row] = sum_over<V>(state.n_columns, [&](int64_t i, typename V::Floats sum) {
      const auto element = V::add(V::mul(V::load(before + i), keep), V::mul(V::load(key + i), written));
      V::store(after + i, element);
      return V::fma(element, V::load(query + i), sum);
    });
  }
}

// A pass over the whole state for each step, as in llama.cpp.
template <typename V>
void delta_rows(const StateRows& state, float decay, const float* value, float share, const float* key, const float* query, float* room,
                float* out) {
  const int64_t n = state.n_columns;
  const auto keep = V::broadcast(decay);
  const auto product = [&](const float* row, const float* with) {
    return sum_over<V>(n, [&](int64_t i, typename V::Floats sum) { return V::fma(V::load(row + i), V::load(with + i), sum); });
  };
  if (state.before != state.after) __builtin_memcpy(state.after, state.before, static_cast<size_t>(state.n_rows * n) * sizeof(float));
  for (int64_t i = 0; i < state.n_rows * n; i += V::kLanes) V::store(state.after + i, V::mul(V::load(state.after + i), keep));
  for (int64_t row = 0; row < state.n_rows; ++row) room[row] = (value[row] - product(state.after + row * n, key)) * share;
  for (int64_t row = 0; row < state.n_rows; ++row) {
    float* after = state.after + row * n;
    const auto written = V::broadcast(room[row]);
    for (int64_t i = 0; i < n; i += V::kLanes) V::store(after + i, V::fma(V::load(key + i), written, V::load(after + i)));
  }
  for (int64_t row = 0; row < state.n_rows; ++row) out[row] = product(state.after + row * n, query);
}

}  // namespace
}  // namespace pshard
