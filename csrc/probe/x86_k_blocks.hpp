// Blocks of 256 columns in vectors: the codes of a group of 32 columns at a time, and the scales of all sub-blocks. Included after
// x86_rows.hpp.
#pragma once

#include "probe/x86_rows.hpp"

namespace pshard {
namespace {

// A byte for each sub-block. Types without mins leave them zero.
struct SubScales {
  __m128i scales;
  __m128i mins;
};

inline __m128i bytes_of(uint32_t a, uint32_t b, uint32_t c = 0, uint32_t d = 0) {
  return _mm_set_epi64x(static_cast<int64_t>(uint64_t{d} << 32 | c), static_cast<int64_t>(uint64_t{b} << 32 | a));
}

// kSubColumns, kHasMins; kOffset, that stored codes are larger; sub_scales(block); codes(block, group).
template <typename Block>
struct Unpacked;

// Q4_K and Q5_K.
template <typename Block>
struct UnpackedWithMins {
  static constexpr int kSubColumns = 32, kOffset = 0;
  static constexpr bool kHasMins = true;

  static SubScales sub_scales(const Block& block) {
    uint32_t words[3];
    __builtin_memcpy(words, block.scales, sizeof words);
    const auto upper = [&](uint32_t low, uint32_t high) { return (low & 0x0f0f0f0fU) | (high >> 6 & 0x03030303U) << 4; };
    return {bytes_of(words[0] & 0x3f3f3f3fU, upper(words[2], words[0])), bytes_of(words[1] & 0x3f3f3f3fU, upper(words[2] >> 4, words[1]))};
  }
  static __m256i nibbles(const Block& block, int group) {
    const __m256i bytes = load(block.codes + group / 2 * 32);
    return group % 2 == 0 ? low_nibbles(bytes) : high_nibbles(bytes);
  }
};

// Bit `from` of every byte, as bit `to`.
inline __m256i moved_bit(__m256i bytes, int from, int to) {
  const __m256i bit = _mm256_and_si256(bytes, _mm256_set1_epi8(static_cast<char>(1 << from)));
  return from < to ? _mm256_slli_epi16(bit, to - from) : _mm256_srli_epi16(bit, from - to);
}

inline __m256i two_bits(const uint8_t* codes, int group) {
  return _mm256_and_si256(_mm256_srli_epi16(load(codes + group / 4 * 32), group % 4 * 2), _mm256_set1_epi8(3));
}

template <>
struct Unpacked<BlockQ4_K> : UnpackedWithMins<BlockQ4_K> {
  static __m256i codes(const BlockQ4_K& block, int group) { return nibbles(block, group); }
};

template <>
struct Unpacked<BlockQ5_K> : UnpackedWithMins<BlockQ5_K> {
  static __m256i codes(const BlockQ5_K& block, int group) {
    return _mm256_or_si256(nibbles(block, group), moved_bit(load(block.high), group, 4));
  }
};

template <>
struct Unpacked<BlockQ2_K> {
  static constexpr int kSubColumns = 16, kOffset = 0;
  static constexpr bool kHasMins = true;

  static SubScales sub_scales(const BlockQ2_K& block) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.scales));
    const __m128i mask = _mm_set1_epi8(15);
    return {_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16(bytes, 4), mask)};
  }
  static __m256i codes(const BlockQ2_K& block, int group) { return two_bits(block.codes, group); }
};

template <>
struct Unpacked<BlockQ3_K> {
  static constexpr int kSubColumns = 16, kOffset = 4;
  static constexpr bool kHasMins = false;

  static SubScales sub_scales(const BlockQ3_K& block) {
    uint32_t words[3];
    __builtin_memcpy(words, block.scales, sizeof words);
    const auto joined = [&](uint32_t low, int pair) { return (low & 0x0f0f0f0fU) | (words[2] >> (2 * pair) & 0x03030303U) << 4; };
    const __m128i scales = bytes_of(joined(words[0], 0), joined(words[1], 1), joined(words[0] >> 4, 2), joined(words[1] >> 4, 3));
    return {_mm_sub_epi8(scales, _mm_set1_epi8(32)), _mm_setzero_si128()};
  }
  static __m256i codes(const BlockQ3_K& block, int group) {
    return _mm256_or_si256(two_bits(block.low, group), moved_bit(load(block.high), group, 2));
  }
};

template <>
struct Unpacked<BlockQ6_K> {
  static constexpr int kSubColumns = 16, kOffset = 32;
  static constexpr bool kHasMins = false;

  static SubScales sub_scales(const BlockQ6_K& block) {
    return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.scales)), _mm_setzero_si128()};
  }
  static __m256i codes(const BlockQ6_K& block, int group) {
    const int quarter = group % 4;
    const __m256i low = load(block.low + group / 4 * 64 + quarter % 2 * 32);
    const __m256i high = load(block.high + group / 4 * 32);
    const __m256i moved = quarter < 2 ? _mm256_slli_epi16(high, 4 - 2 * quarter) : _mm256_srli_epi16(high, 2 * quarter - 4);
    return _mm256_or_si256(quarter < 2 ? low_nibbles(low) : high_nibbles(low), _mm256_and_si256(moved, _mm256_set1_epi8(48)));
  }
};

// Its codes have a sign.
template <>
struct Unpacked<BlockIQ4_XS> {
  static constexpr int kSubColumns = 32, kOffset = 0;
  static constexpr bool kHasMins = false;

  static SubScales sub_scales(const BlockIQ4_XS& block) {
    uint32_t low;
    __builtin_memcpy(&low, block.low_scales, sizeof low);
    const __m128i nibbles = _mm_unpacklo_epi8(bytes_of(low & 0x0f0f0f0fU, 0), bytes_of(low >> 4 & 0x0f0f0f0fU, 0));
    const __m256i places = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i high = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(block.high_scales), places), _mm256_set1_epi32(3));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    const __m128i upper = _mm_slli_epi16(_mm_packs_epi16(words, words), 4);
    return {_mm_sub_epi8(_mm_or_si128(nibbles, upper), _mm_set1_epi8(32)), _mm_setzero_si128()};
  }
  static __m256i codes(const BlockIQ4_XS& block, int group) { return looked_up(kUnevenSteps, block.codes + 16 * group); }
};

template <typename Block>
inline constexpr bool kIsSigned = false;
template <>
inline constexpr bool kIsSigned<BlockIQ4_XS> = true;

template <typename Block>
inline constexpr int kSubs = 256 / Unpacked<Block>::kSubColumns;

}  // namespace
}  // namespace pshard
