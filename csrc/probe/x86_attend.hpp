// Attention of one query, cell by cell, over a type V of vectors as in x86_half.hpp.
#pragma once

#include "probe/x86_half.hpp"
#include "probe/x86_rows.hpp"

namespace pshard {
namespace {

// Dot product, scaling and sum are calls of their own, and a score goes through the same steps as in llama.cpp: beside a cache that lies
// scattered, how far ahead a core asks for its cells depends on how many instructions each takes.
template <typename V>
__attribute__((noinline)) float dot_halves(const uint8_t* row, const Activations& x, int64_t j) {
  return half_dot<V>(reinterpret_cast<const uint16_t*>(row), x.halves + j * x.n_columns, x.n_columns);
}

template <typename Block>
__attribute__((noinline)) float dot_blocks(const uint8_t* row, const Activations& x, int64_t j) {
  return dot_of_32s(reinterpret_cast<const Block*>(row), x.n_columns / 32, x.codes + j * x.n_columns, x.scales + j * x.n_scales);
}

// Four vectors at a time where there are as many.
template <typename V, typename Step>
inline void by_vectors(int64_t n_columns, Step step) {
  int64_t at = 0;
  for (; at + 4 * V::kLanes <= n_columns; at += 4 * V::kLanes) {
    for (int v = 0; v < 4; ++v) step(at + v * V::kLanes);
  }
  for (; at < n_columns; at += V::kLanes) step(at);
}

template <typename V>
__attribute__((noinline)) void half_scale(uint16_t* sums, float by, int64_t n_columns) {
  by_vectors<V>(n_columns, [=](int64_t at) { V::store_half(sums + at, V::mul(V::broadcast(by), V::load_half(sums + at))); });
}

template <typename V>
__attribute__((noinline)) void half_add(uint16_t* sums, const uint16_t* row, float share, int64_t n_columns) {
  by_vectors<V>(n_columns, [=](int64_t at) {
    V::store_half(sums + at, V::fma(V::broadcast(share), V::load_half(row + at), V::load_half(sums + at)));
  });
}

template <typename V>
void float_scale(float* sums, float by, int64_t n_columns) {
  by_vectors<V>(n_columns, [=](int64_t at) { V::store(sums + at, V::mul(V::broadcast(by), V::load(sums + at))); });
}

template <typename V>
void float_add(float* sums, const float* row, float share, int64_t n_columns) {
  by_vectors<V>(n_columns, [=](int64_t at) { V::store(sums + at, V::fma(V::broadcast(share), V::load(row + at), V::load(sums + at))); });
}

template <typename V>
Softmax attend(const Query& query, const Cells& cells, int64_t n_columns, const ValueSums& sums) {
  float largest = -__builtin_inff();
  float total = 0.0F;
  for (int64_t i = 0; i < cells.keys.n; ++i) {
    const float mask = query.slope * _cvtsh_ss(cells.mask[i]);
    if (mask == -__builtin_inff()) continue;
    float score = query.scale * cells.dot(cells.keys.data + i * cells.keys.stride, query.x, query.row);
    if (query.softcap != 0.0F) score = query.softcap * __builtin_tanhf(score);
    score += mask;
    float keep = 1.0F;
    float share = 1.0F;
    const bool is_largest = score > largest;
    if (is_largest) {
      keep = __builtin_expf(largest - score);
      largest = score;
    } else {
      share = __builtin_expf(score - largest);
    }
    const uint8_t* value = cells.values.data + i * cells.values.stride;
    if (cells.decode == nullptr) {
      if (is_largest) half_scale<V>(sums.halves, keep, n_columns);
      half_add<V>(sums.halves, reinterpret_cast<const uint16_t*>(value), share, n_columns);
    } else {
      if (is_largest) float_scale<V>(sums.floats, keep, n_columns);
      cells.decode(value, n_columns, sums.room);
      float_add<V>(sums.floats, sums.room, share, n_columns);
    }
    total = total * keep + share;
  }
  return {largest, total};
}

}  // namespace
}  // namespace pshard
