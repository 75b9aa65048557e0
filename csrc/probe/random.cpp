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

namespace {

template <typename T>
void store(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// Puts scales, or the number itself, in place of bits that may be no number or a large one.
void finish_block(WeightType type, Random& random, uint8_t* block) {
  switch (type) {
    case WeightType::f32:
      return store(block, random.next_float());
    case WeightType::f16:
      return store(block, float_to_half(random.next_float()));
    case WeightType::bf16:
      return store(block, float_to_bfloat(random.next_float()));
    case WeightType::mxfp4:
      return store(block, static_cast<uint8_t>(121 + random.next() % 2));
    default:
      for (const int32_t place : format_of(type).half_places) {
        if (place >= 0) store(block + place, float_to_half((1.5F + 0.5F * random.next_float()) / 64.0F));
      }
  }
}

}  // namespace

void fill_random(WeightType type, int64_t n_rows, int64_t n_columns, uint64_t seed, uint8_t* out) {
  const int64_t n_bytes = n_rows * row_bytes(type, n_columns);
  Random random(seed);
  for (int64_t at = 0; at + 8 <= n_bytes; at += 8) {
    const uint64_t word = random.next();
    std::memcpy(out + at, &word, 8);
  }
  for (int64_t at = n_bytes / 8 * 8; at < n_bytes; ++at) out[at] = static_cast<uint8_t>(random.next() >> 56);
  const WeightFormat& format = format_of(type);
  for (int64_t at = 0; at < n_bytes; at += format.bytes) finish_block(type, random, out + at);
}

}  // namespace pshard
