// Multiply-adds in registers, over a type V of vectors as in x86_panels.hpp.
#pragma once

#include "probe/kernels.hpp"

namespace pshard {
namespace {

template <typename V>
int64_t spin_bytes(int64_t n) {
  typename V::Ints sums[kPeakChains];
  for (auto& sum : sums) sum = V::broadcast_int(0);
  const typename V::Ints ones = V::broadcast_int(0x01010101);
  for (int64_t i = 0; i < n; ++i) {
    for (auto& sum : sums) sum = V::multiply_add(sum, ones, ones);
  }
  int64_t total = 0;
  for (const auto& sum : sums) {
    int32_t lanes[V::kLanes];
    V::store_ints(lanes, sum);
    for (const int32_t lane : lanes) total += lane;
  }
  return total;
}

template <typename V>
double spin_floats(int64_t n) {
  typename V::Floats sums[kPeakChains];
  for (auto& sum : sums) sum = V::zero();
  const typename V::Floats half = V::broadcast(0.5F);
  const typename V::Floats one = V::broadcast(1.0F);
  for (int64_t i = 0; i < n; ++i) {
    for (auto& sum : sums) sum = V::fma(sum, half, one);
  }
  double total = 0.0;
  for (const auto& sum : sums) total += static_cast<double>(V::sum(sum));
  return total;
}

}  // namespace
}  // namespace pshard
