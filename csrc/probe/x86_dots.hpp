// Dot products of one row of blocks of 256 columns, in 256-bit vectors, for the AVX2 and the AVX-512 kernels. Included after x86_rows.hpp.
#pragma once

#include "probe/x86_k_blocks.hpp"

namespace pshard {
namespace {

// Pair `index` of bytes of each half of a vector, everywhere in that half.
inline __m256i spread_pair(__m256i pairs, int index) {
  return _mm256_shuffle_epi8(pairs, _mm256_set1_epi16(static_cast<int16_t>(2 * index | (2 * index + 1) << 8)));
}

// Products of codes with activations, times the 16-bit scale of each.
template <bool is_signed>
inline __m256i scaled_products(__m256i codes, const int8_t* x, __m256i scale) {
  __m256i pairs;
  if constexpr (is_signed) {
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(load(x), codes));
  } else {
    pairs = _mm256_maddubs_epi16(codes, load(x));
  }
  return _mm256_madd_epi16(pairs, scale);
}

// The sum of a byte times a number over all sub-blocks, in parts.
template <int n>
inline __m256 weighted(__m128i bytes, const float* numbers) {
  __m256 sum = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_loadu_ps(numbers));
  if constexpr (n == 16) {
    const __m256 upper = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
    sum = _mm256_fmadd_ps(upper, _mm256_loadu_ps(numbers + 8), sum);
  }
  return sum;
}

// Scales of 16 bits: value `group` of each half belongs to that half of the group's columns.
template <int n>
inline __m256i by_half_groups(__m128i scales) {
  if constexpr (n == 8) return _mm256_broadcastsi128_si256(_mm_cvtepi8_epi16(scales));
  const __m128i even_then_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, even_then_odd));
}

template <typename Block>
inline float dot(const Block* blocks, int64_t n_blocks, const int8_t* x, const float* scales, const float* sums) {
  using Unpack = Unpacked<Block>;
  constexpr int n_subs = kSubs<Block>;
  __m256 total = _mm256_setzero_ps();
  __m256 less = _mm256_setzero_ps();
  for (int64_t b = 0; b < n_blocks; ++b, x += 256, sums += n_subs) {
    const SubScales unpacked = Unpack::sub_scales(blocks[b]);
    const __m256i halves = by_half_groups<n_subs>(unpacked.scales);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int group = 0; group < 8; ++group) {
      const __m256i scale = spread_pair(halves, group);
      sum = _mm256_add_epi32(sum, scaled_products<kIsSigned<Block>>(Unpack::codes(blocks[b], group), x + 32 * group, scale));
    }
    const float scale = scales[b] * _cvtsh_ss(blocks[b].scale);
    total = _mm256_fmadd_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(sum), total);
    if constexpr (Unpack::kHasMins) {
      less = _mm256_fmadd_ps(_mm256_set1_ps(scales[b] * _cvtsh_ss(blocks[b].min)), weighted<n_subs>(unpacked.mins, sums), less);
    } else if constexpr (Unpack::kOffset != 0) {
      less = _mm256_fmadd_ps(_mm256_set1_ps(scale * Unpack::kOffset), weighted<n_subs>(unpacked.scales, sums), less);
    }
  }
  return sum_lanes(_mm256_sub_ps(total, less));
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
