// exp() of a row of scores, in plain arithmetic that the compiler turns into vectors of each instruction set.
#pragma once

#include <cstdint>

namespace pshard {
namespace {

// Replaces `scores`, at most `largest`, by exp(score - largest) and returns their sum. Relative error below 1e-6; what is smaller than
// exp(-87) counts as that.
float exp_row(float* scores, int64_t n, float largest) {
  constexpr float kLog2E = 1.44269504F, kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // adding it leaves the nearest whole number in the low bits
  float sum = 0.0F;
  for (int64_t i = 0; i < n; ++i) {
    const float below = scores[i] - largest;
    const float x = below < -87.0F ? -87.0F : below;
    const float shifted = x * kLog2E + kRound;
    const float power = shifted - kRound;
    const float rest = (x - power * kLn2High) - power * kLn2Low;
    // Taylor's polynomial: |rest| is at most ln(2) / 2
    float value = 1.0F / 720.0F;
    value = value * rest + 1.0F / 120.0F;
    value = value * rest + 1.0F / 24.0F;
    value = value * rest + 1.0F / 6.0F;
    value = value * rest + 0.5F;
    value = value * rest + 1.0F;
    value = value * rest + 1.0F;
    int32_t bits;
    __builtin_memcpy(&bits, &shifted, 4);
    const int32_t exponent = (bits - 0x4b400000 + 127) * (1 << 23);
    float scale;
    __builtin_memcpy(&scale, &exponent, 4);
    scores[i] = value * scale;
  }
  for (int64_t i = 0; i < n; ++i) sum += scores[i];
  return sum;
}

}  // namespace
}  // namespace pshard
