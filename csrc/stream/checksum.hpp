// A checksum of bytes that tells any change of a word, its place included, from none: 64 bits, a few bytes per cycle.
#pragma once

#include <cstdint>
#include <cstring>

namespace pshard {

[[nodiscard]] inline uint64_t checksum(const uint8_t* bytes, int64_t n_bytes) {
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15ULL;
  uint64_t lanes[4] = {1, 2, 3, 4};
  const auto mix = [&](int lane, uint64_t word) { lanes[lane] = (lanes[lane] ^ word) * kFactor + (lanes[lane] >> 29); };
  int64_t at = 0;
  for (; at + 32 <= n_bytes; at += 32) {
    uint64_t words[4];
    std::memcpy(words, bytes + at, sizeof words);
    for (int lane = 0; lane < 4; ++lane) mix(lane, words[lane]);
  }
  for (; at < n_bytes; ++at) mix(0, bytes[at]);
  uint64_t sum = static_cast<uint64_t>(n_bytes);
  for (const uint64_t lane : lanes) sum = (sum ^ lane) * kFactor;
  return sum ^ sum >> 32;
}

}  // namespace pshard
