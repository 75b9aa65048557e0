#include "probe/random.hpp"

#include <cstring>

namespace pshard {

uint64_t Random::next() {  // xorshift64*
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return state_ * 0x2545f4914f6cdd1dULL;
}

float Random::next_float() { return static_cast<float>(static_cast<double>(next() >> 40) * 0x1p-23 - 1.0); }

void fill_random(WeightType type, int64_t n_rows, int64_t n_columns, uint64_t seed, uint8_t* out) {
  const int64_t n_bytes = n_rows * row_bytes(type, n_columns);
  Random random(seed);
  for (int64_t at = 0; at + 8 <= n_bytes; at += 8) {
    const uint64_t word = random.next();
    std::memcpy(out + at, &word, 8);
  }
  for (int64_t at = n_bytes / 8 * 8; at < n_bytes; ++at) out[at] = static_cast<uint8_t>(random.next() >> 56);
  const auto scale_at = [&](int64_t at) {
    const uint16_t half = float_to_half((1.5F + 0.5F * random.next_float()) / 64.0F);
    std::memcpy(out + at, &half, 2);
  };
  const BlockShape& shape = block_shape(type);
  for (int64_t at = 0; at < n_bytes; at += shape.bytes) {
    switch (type) {
      case WeightType::f16: {
        const uint16_t half = float_to_half(random.next_float());
        std::memcpy(out + at, &half, 2);
        break;
      }
      case WeightType::q8_0:
      case WeightType::q4_0:
        scale_at(at);
        break;
      case WeightType::q4_k:
        scale_at(at);
        scale_at(at + 2);
        break;
      case WeightType::q6_k:
        scale_at(at + 208);
        break;
    }
  }
}

}  // namespace pshard
