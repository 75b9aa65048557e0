// Codes and scales of blocks of 32 columns, in 256-bit vectors. Nothing inline of the standard library is used here, nor in what includes
// it: one copy, compiled for these CPUs, would serve the whole program.
#pragma once

#include <immintrin.h>

#include "probe/kernels.hpp"

namespace pshard {
namespace {

inline __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

inline float sum_lanes(__m256 v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }

// Low nibbles of 16 bytes, then their high ones; and what a table has for each of them.
inline __m256i nibbles_of(const uint8_t* codes) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return low_nibbles(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes));
}
inline __m256i looked_up(const int8_t table[16], const uint8_t* codes) {
  const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), nibbles_of(codes));
}

// All bits of each byte of 32 whose column has its fifth bit set.
inline __m256i fifth_bits(const uint8_t high[4]) {
  uint32_t word;
  __builtin_memcpy(&word, high, sizeof word);
  const __m256i own_byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i own_bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
  const __m256i bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(word)), own_byte), own_bit);
  return _mm256_cmpeq_epi8(bits, own_bit);
}

// Codes of a block of 32 columns, signed; unsigned of types that add a least weight.
inline __m256i codes_of(const BlockQ8_0& block) { return load(block.codes); }
inline __m256i codes_of(const BlockQ4_0& block) { return _mm256_sub_epi8(nibbles_of(block.codes), _mm256_set1_epi8(8)); }
inline __m256i codes_of(const BlockQ4_1& block) { return nibbles_of(block.codes); }
inline __m256i codes_of(const BlockQ5_0& block) {  // 16 less where the bit is clear
  return _mm256_or_si256(nibbles_of(block.codes), _mm256_andnot_si256(fifth_bits(block.high), _mm256_set1_epi8(-16)));
}
inline __m256i codes_of(const BlockQ5_1& block) {
  return _mm256_or_si256(nibbles_of(block.codes), _mm256_and_si256(fifth_bits(block.high), _mm256_set1_epi8(16)));
}
inline __m256i codes_of(const BlockIQ4_NL& block) { return looked_up(kUnevenSteps, block.codes); }
inline __m256i codes_of(const BlockMXFP4& block) { return looked_up(kFourBitFloats, block.codes); }

template <typename Block>
inline constexpr bool kHasLeast = requires(Block block) {
  block.least;
};

template <typename Block>
inline float scale_of(const Block& block) {
  return _cvtsh_ss(block.scale);
}
inline float scale_of(const BlockMXFP4& block) {
  // The two smallest are subnormal.
  const uint32_t bits = block.exponent < 2 ? 0x00200000U << block.exponent : (block.exponent - 1U) << 23;
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int32_t>(bits))));
}

// What the codes of a block of 32 columns stand for.
inline constexpr int8_t kEvenSteps[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
template <typename Block>
inline constexpr const int8_t* kStepsOf = kEvenSteps;
template <>
inline constexpr const int8_t* kStepsOf<BlockIQ4_NL> = kUnevenSteps;
template <>
inline constexpr const int8_t* kStepsOf<BlockMXFP4> = kFourBitFloats;

}  // namespace
}  // namespace pshard
