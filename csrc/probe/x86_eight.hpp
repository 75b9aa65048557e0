// Vectors of eight 32-bit lanes, over the multiply_add() of the file that includes this.
#pragma once

#include "probe/x86_rows.hpp"

namespace pshard {
namespace {

struct Eight {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kPanelRows = 4;  // of activations at once, for 16 registers
  static constexpr int kTileRows = 4, kTileColumns = 2;
  static constexpr int kHalfRows = 4, kHalfColumns = 2, kMixRows = 4, kMixVectors = 2;

  static Ints load_ints(const void* at) { return pshard::load(at); }
  static void store_ints(void* to, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
  static Ints broadcast_int(int32_t value) { return _mm256_set1_epi32(value); }
  static Ints broadcast_four(const int8_t* at) {
    int32_t word;
    __builtin_memcpy(&word, at, 4);
    return _mm256_set1_epi32(word);
  }
  static Ints multiply_add(Ints sum, Ints codes, Ints x) { return pshard::multiply_add(sum, codes, x); }
  // Both signed. The signs of x go to the codes, so that x can be multiplied without.
  static Ints multiply_signed(Ints sum, Ints codes, Ints x) {
    return pshard::multiply_add(sum, _mm256_abs_epi8(x), _mm256_sign_epi8(codes, x));
  }
  // In pairs of 16 bits: adds sums of two products of unsigned codes with x; multiplies both with what is below 2^16 and adds them.
  static Ints add_pairs(Ints pairs, Ints codes, Ints x) { return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, x)); }
  static Ints scale_pairs(Ints pairs, Ints scale) { return _mm256_madd_epi16(pairs, either(scale, shift_left(scale, 16))); }
  // Of two pieces of codes, each eight bytes of four rows: the first or the last four bytes of all rows, which then lie in pairs, that is
  // in the order 0 4 1 5 2 6 3 7. And from that order to the rows', and back.
  static Ints first_fours(Ints low, Ints high) { return _mm256_blend_epi32(low, _mm256_shuffle_epi32(high, 0xb1), 0xaa); }
  static Ints last_fours(Ints low, Ints high) { return _mm256_blend_epi32(_mm256_shuffle_epi32(low, 0xb1), high, 0xaa); }
  static Ints in_order(Ints v) { return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)); }
  static Floats in_order(Floats v) { return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)); }
  static Ints in_pairs(Ints v) { return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }
  static Floats in_pairs(Floats v) { return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }
  static Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints mul_ints(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  static Ints to_ints(Floats v) { return _mm256_cvtps_epi32(v); }
  // What codes of four bits stand for, from a table.
  static Ints looked_up(const int8_t table[16], Ints v) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), v);
  }
  // Sixteen bytes in either half, and four of them in all lanes.
  static Ints both_halves(const int8_t* at) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))); }
  template <int kFour>
  static Ints four(Ints v) {
    return _mm256_shuffle_epi32(v, kFour * 0x55);
  }
  static Ints low_nibbles(Ints v) { return pshard::low_nibbles(v); }
  static Ints high_nibbles(Ints v) { return pshard::high_nibbles(v); }
  static Ints bits(Ints v, int shift, int mask) { return _mm256_and_si256(_mm256_srli_epi32(v, shift), _mm256_set1_epi32(mask)); }
  static Ints shift_left(Ints v, int by) { return _mm256_slli_epi32(v, by); }
  static Ints either(Ints a, Ints b) { return _mm256_or_si256(a, b); }
  static Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats load(const float* at) { return _mm256_loadu_ps(at); }
  static Floats load_half(const uint16_t* at) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))); }
  // 2^(e - 128) of eight bytes e; the two smallest are subnormal.
  static Floats powers_of_two(const uint8_t* at) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
  }
  static Floats load_bfloat(const uint16_t* at) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static void store_half(uint16_t* to, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(float* to, Floats v) { _mm256_storeu_ps(to, v); }
  static Floats broadcast(float value) { return _mm256_set1_ps(value); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats fma_minus(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
  static float sum(Floats v) { return sum_lanes(v); }
};

}  // namespace
}  // namespace pshard
