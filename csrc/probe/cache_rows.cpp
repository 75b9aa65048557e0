#include "probe/cache_rows.hpp"

#include <bit>

namespace pshard {
namespace {

// half_to_float(), in line: a block of 32 has one. For its branch compilers do not take Q4_0 in vectors, nor do they in llama.cpp.
inline float to_float(uint16_t half) {
  constexpr uint32_t kBias = 112U << 23, kFirst = 113U << 23;
  const auto shifted = static_cast<uint32_t>(half & 0x7fff) << 13;
  float magnitude = std::bit_cast<float>(shifted + kBias);
  if ((half & 0x7c00) == 0) magnitude = std::bit_cast<float>(shifted + kFirst) - std::bit_cast<float>(kFirst);  // subnormal
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

void decode_q8_0(const uint8_t* row, int64_t n_columns, float* __restrict out) {
  const auto* blocks = reinterpret_cast<const BlockQ8_0*>(row);
  for (int64_t b = 0; b < n_columns / 32; ++b, out += 32) {
    const float scale = to_float(blocks[b].scale);
    for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(blocks[b].codes[i]);
  }
}

void decode_q4_0(const uint8_t* row, int64_t n_columns, float* __restrict out) {
  const auto* blocks = reinterpret_cast<const BlockQ4_0*>(row);
  for (int64_t b = 0; b < n_columns / 32; ++b, out += 32) {
    const float scale = to_float(blocks[b].scale);
    for (int i = 0; i < 16; ++i) {
      out[i] = scale * static_cast<float>((blocks[b].codes[i] & 15) - 8);
      out[i + 16] = scale * static_cast<float>((blocks[b].codes[i] >> 4) - 8);
    }
  }
}

}  // namespace

DecodeRow decode_row(WeightType type) {
  switch (type) {
    case WeightType::q8_0:
      return decode_q8_0;
    case WeightType::q4_0:
      return decode_q4_0;
    default:
      return nullptr;
  }
}

}  // namespace pshard
