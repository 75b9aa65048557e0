// Dot products of one row of K-type blocks, in 256-bit vectors, for the AVX2 and the AVX-512 kernels. Included after x86_rows.hpp.
#pragma once

#include "probe/x86_rows.hpp"

namespace pshard {
namespace {

// Pair `index` of bytes of each half of a vector, everywhere in that half.
inline __m256i spread_pair(__m256i pairs, int index) {
  return _mm256_shuffle_epi8(pairs, _mm256_set1_epi16(static_cast<int16_t>(2 * index | (2 * index + 1) << 8)));
}

// Products of unsigned codes with activations, times the 16-bit scale of each.
inline __m256i scaled_products(__m256i codes, const int8_t* x, __m256i scale) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, load(x)), scale);
}

// The eight scales and the eight mins of a Q4_K block, a byte each.
struct Q4_K_Scales {
  __m128i scales;
  __m128i mins;
};
inline Q4_K_Scales unpack_scales(const BlockQ4_K& block) {
  uint32_t words[3];
  __builtin_memcpy(words, block.scales, sizeof words);
  const auto upper = [&](uint32_t low, uint32_t high) { return (low & 0x0f0f0f0fU) | (high >> 6 & 0x03030303U) << 4; };
  const uint64_t scales = (words[0] & 0x3f3f3f3fU) | uint64_t{upper(words[2], words[0])} << 32;
  const uint64_t mins = (words[1] & 0x3f3f3f3fU) | uint64_t{upper(words[2] >> 4, words[1])} << 32;
  return {_mm_cvtsi64_si128(static_cast<int64_t>(scales)), _mm_cvtsi64_si128(static_cast<int64_t>(mins))};
}

inline float dot(const BlockQ4_K* blocks, int64_t n_blocks, const int8_t* x, const float* scales, const float* sums) {
  __m256 total = _mm256_setzero_ps();
  __m256 less = _mm256_setzero_ps();
  for (int64_t b = 0; b < n_blocks; ++b, x += 256, sums += 8) {
    const Q4_K_Scales unpacked = unpack_scales(blocks[b]);
    const __m256i both_halves = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(unpacked.scales));
    __m256i sum = _mm256_setzero_si256();
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i bytes = load(blocks[b].codes + 32 * pair);
      const __m256i even = scaled_products(low_nibbles(bytes), x + 64 * pair, spread_pair(both_halves, 2 * pair));
      const __m256i odd = scaled_products(high_nibbles(bytes), x + 64 * pair + 32, spread_pair(both_halves, 2 * pair + 1));
      sum = _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
    }
    total = _mm256_fmadd_ps(_mm256_set1_ps(scales[b] * _cvtsh_ss(blocks[b].scale)), _mm256_cvtepi32_ps(sum), total);
    const __m256 mins = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unpacked.mins)), _mm256_loadu_ps(sums));
    less = _mm256_fmadd_ps(_mm256_set1_ps(scales[b] * _cvtsh_ss(blocks[b].min)), mins, less);
  }
  return sum_lanes(_mm256_sub_ps(total, less));
}

// Half a block of Q6_K, with the offset of 32 left in.
struct Q6_K_Codes {
  __m256i by_32_columns[4];
};
inline Q6_K_Codes codes_of(const BlockQ6_K& block, int half) {
  const __m256i low = load(block.low + 64 * half);
  const __m256i next = load(block.low + 64 * half + 32);
  const __m256i high = load(block.high + 32 * half);
  const __m256i mask = _mm256_set1_epi8(48);
  return {{
      _mm256_or_si256(low_nibbles(low), _mm256_and_si256(_mm256_slli_epi16(high, 4), mask)),
      _mm256_or_si256(low_nibbles(next), _mm256_and_si256(_mm256_slli_epi16(high, 2), mask)),
      _mm256_or_si256(high_nibbles(low), _mm256_and_si256(high, mask)),
      _mm256_or_si256(high_nibbles(next), _mm256_and_si256(_mm256_srli_epi16(high, 2), mask)),
  }};
}

inline float dot(const BlockQ6_K* blocks, int64_t n_blocks, const int8_t* x, const float* scales, const float* sums) {
  // Even sub-blocks meet the low half of a vector and odd ones the high half.
  const __m128i even_then_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  __m256 total = _mm256_setzero_ps();
  for (int64_t b = 0; b < n_blocks; ++b, x += 256, sums += 16) {
    const __m128i sub_scales = _mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks[b].scales));
    const __m256i halves = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(sub_scales, even_then_odd));
    __m256i sum = _mm256_setzero_si256();
    for (int half = 0; half < 2; ++half) {
      const Q6_K_Codes codes = codes_of(blocks[b], half);
      for (int i = 0; i < 4; ++i) {
        sum = _mm256_add_epi32(sum, scaled_products(codes.by_32_columns[i], x + 128 * half + 32 * i, spread_pair(halves, 4 * half + i)));
      }
    }
    const __m256 first = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(sub_scales)), _mm256_loadu_ps(sums));
    const __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(sub_scales, 8)));
    const __m256 offsets = _mm256_fmadd_ps(second, _mm256_loadu_ps(sums + 8), first);
    const __m256 stored = _mm256_fnmadd_ps(_mm256_set1_ps(32.0F), offsets, _mm256_cvtepi32_ps(sum));
    total = _mm256_fmadd_ps(_mm256_set1_ps(scales[b] * _cvtsh_ss(blocks[b].scale)), stored, total);
  }
  return sum_lanes(total);
}

// Row by row of the weights, each with every row of the activations while it is near.
template <typename Block>
void multiply_dots(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                   int64_t out_stride) {
  const int64_t n_blocks = x.n_columns / 256;
  const auto* rows = reinterpret_cast<const Block*>(weights);
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t j = first; j < last; ++j) {
      out[j * out_stride + row] =
          dot(rows + row * n_blocks, n_blocks, x.codes + j * x.n_columns, x.scales + j * x.n_scales, x.sums + j * x.n_sub_blocks);
    }
  }
}

}  // namespace
}  // namespace pshard
