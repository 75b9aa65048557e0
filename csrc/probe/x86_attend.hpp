// Attention of one query over F16 keys and values, over a type V of vectors as in x86_half.hpp.
#pragma once

#include "probe/x86_half.hpp"

namespace pshard {
namespace {

// Dot product, scaling and sum are calls of their own, as in llama.cpp: beside a cache that lies scattered, how far ahead a core asks for
// its cells depends on how much it does for each.
template <typename V>
__attribute__((noinline)) float half_score(const uint16_t* key, const uint16_t* query, int64_t n_columns) {
  return half_dot<V>(key, query, n_columns);
}

template <typename V>
__attribute__((noinline)) void half_scale(uint16_t* sums, float by, int64_t n_columns) {
  for (int64_t at = 0; at < n_columns; at += V::kLanes) V::store_half(sums + at, V::mul(V::broadcast(by), V::load_half(sums + at)));
}

template <typename V>
__attribute__((noinline)) void half_add(uint16_t* sums, const uint16_t* row, float share, int64_t n_columns) {
  for (int64_t at = 0; at < n_columns; at += V::kLanes) {
    V::store_half(sums + at, V::fma(V::broadcast(share), V::load_half(row + at), V::load_half(sums + at)));
  }
}

template <typename V>
Softmax half_attend(const uint16_t* query, Rows<const uint16_t> keys, Rows<const uint16_t> values, const uint16_t* mask, int64_t n_columns,
                    uint16_t* sums) {
  float largest = -__builtin_inff();
  float total = 0.0F;
  for (int64_t i = 0; i < keys.n; ++i) {
    const float score = _cvtsh_ss(mask[i]) + half_score<V>(keys.data + i * keys.stride, query, n_columns);
    if (score > largest) {
      const float keep = __builtin_expf(largest - score);
      half_scale<V>(sums, keep, n_columns);
      total *= keep;
      largest = score;
    }
    const float share = __builtin_expf(score - largest);
    half_add<V>(sums, values.data + i * values.stride, share, n_columns);
    total += share;
  }
  return {largest, total};
}

}  // namespace
}  // namespace pshard
