// Dot products of rows of 256-bit vectors, for the AVX2 and the AVX-512 kernels. Each includes it once, after defining multiply_add(): sums
// of four products of unsigned with signed bytes.
#pragma once

#include "probe/x86_codes.hpp"

namespace pshard {
namespace {

// The scales of a block of up to four rows, in each half of a vector.
template <int kRows, typename Block>
inline __m256 scales_of(const Block* weights, int64_t n_blocks) {
  static_assert(kRows <= 4);
  uint64_t halves = 0;  // not by way of memory, where what was written in parts is slow to read whole
  for (int r = 0; r < kRows; ++r) halves |= uint64_t{weights[r * n_blocks].scale} << 16 * r;
  const __m128 scales = _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(halves)));
  return _mm256_set_m128(scales, scales);
}

// A tile of dot products over blocks of 32 columns.
template <typename Block, int kRows, int kColumns>
inline void multiply_tile(const Block* weights, int64_t n_blocks, const Activations& x, int64_t j, float* out, int64_t out_stride) {
  __m256 sums[kRows][kColumns] = {};
  const int8_t* x_codes[kColumns];
  const float* x_scales[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    x_codes[c] = x.codes + (j + c) * x.n_columns;
    x_scales[c] = x.scales + (j + c) * x.n_scales;
  }
  for (int64_t b = 0; b < n_blocks; ++b) {
    __m256i codes[kRows];
    __m256i magnitudes[kRows];
    for (int r = 0; r < kRows; ++r) {
      codes[r] = codes_of(weights[r * n_blocks + b]);
      magnitudes[r] = _mm256_abs_epi8(codes[r]);
    }
    const __m256 row_scales = scales_of<kRows>(weights + b, n_blocks);
    for (int c = 0; c < kColumns; ++c) {
      const __m256i at_c = load(x_codes[c] + 32 * b);
      const __m256 scales = _mm256_mul_ps(row_scales, _mm256_broadcast_ss(x_scales[c] + b));
      for (int r = 0; r < kRows; ++r) {
        const __m256i sum = multiply_add(_mm256_setzero_si256(), magnitudes[r], _mm256_sign_epi8(at_c, codes[r]));
        const __m256 scale = _mm256_permutevar_ps(scales, _mm256_set1_epi32(r));
        sums[r][c] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum), sums[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) out[(j + c) * out_stride + r] = sum_lanes(sums[r][c]);
  }
}

template <typename Block, int kRows, int kColumns>
inline void multiply_columns(const Block* weights, int64_t n_blocks, const Activations& x, int64_t first, int64_t last, float* out,
                             int64_t out_stride) {
  int64_t j = first;
  for (; j + kColumns <= last; j += kColumns) multiply_tile<Block, kRows, kColumns>(weights, n_blocks, x, j, out, out_stride);
  for (; j < last; ++j) multiply_tile<Block, kRows, 1>(weights, n_blocks, x, j, out, out_stride);
}

// One row of each. Its loop is as short as it can be: the fewer instructions a block takes, the further ahead a core asks for the next
// blocks, and one thread alone does not ask for as much as memory gives.
template <typename Block>
inline float dot_of_32s(const Block* weights, int64_t n_blocks, const int8_t* x, const float* scales) {
  __m256 sum = _mm256_setzero_ps();
  for (int64_t b = 0; b < n_blocks; ++b) {
    const __m256i codes = codes_of(weights[b]);
    const __m256i products = multiply_add(_mm256_setzero_si256(), _mm256_abs_epi8(codes), _mm256_sign_epi8(load(x + 32 * b), codes));
    sum = _mm256_fmadd_ps(_mm256_set1_ps(scale_of(weights[b]) * scales[b]), _mm256_cvtepi32_ps(products), sum);
  }
  return sum_lanes(sum);
}

// Of types that add a least weight, which lies behind the scale.
template <typename Block>
inline float dot_with_least(const Block* weights, int64_t n_blocks, const int8_t* x, const float* scales, const float* sums) {
  __m256 sum = _mm256_setzero_ps();
  __m128 rest = _mm_setzero_ps();
  for (int64_t b = 0; b < n_blocks; ++b) {
    int32_t halves;
    __builtin_memcpy(&halves, &weights[b], sizeof halves);
    const __m128 both = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(halves)), _mm_set1_ps(scales[b]));
    const __m256i products = multiply_add(_mm256_setzero_si256(), codes_of(weights[b]), load(x + 32 * b));
    sum = _mm256_fmadd_ps(_mm256_broadcastss_ps(both), _mm256_cvtepi32_ps(products), sum);
    rest = _mm_fmadd_ps(both, _mm_set1_ps(sums[b]), rest);
  }
  return sum_lanes(sum) + _mm_cvtss_f32(_mm_movehdup_ps(rest));
}

// Each row with each of the activations, for types that have no tiles.
template <typename Block>
void multiply_by_rows(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                      int64_t out_stride, uint8_t* /*scratch*/) {
  const int64_t n_blocks = x.n_columns / 32;
  const auto* rows = reinterpret_cast<const Block*>(weights);
  for (int64_t j = first; j < last; ++j) {
    const int8_t* codes = x.codes + j * x.n_columns;
    for (int64_t row = 0; row < n_rows; ++row) {
      const Block* at = rows + row * n_blocks;
      const float* scales = x.scales + j * x.n_scales;
      if constexpr (kHasLeast<Block>) {
        out[j * out_stride + row] = dot_with_least(at, n_blocks, codes, scales, x.sums + j * x.n_sub_blocks);
      } else {
        out[j * out_stride + row] = dot_of_32s(at, n_blocks, codes, scales);
      }
    }
  }
}

template <typename Block, int kTileRows, int kTileColumns>
void multiply_blocks(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                     int64_t out_stride, uint8_t* /*scratch*/) {
  const int64_t n_blocks = x.n_columns / 32;
  const auto* rows = reinterpret_cast<const Block*>(weights);
  if (last - first == 1) return multiply_by_rows<Block>(weights, n_rows, x, first, last, out, out_stride, nullptr);
  for (int64_t j = first; j < last; j += kNearRows) {
    const int64_t end = last - j < kNearRows ? last : j + kNearRows;
    int64_t row = 0;
    for (; row + kTileRows <= n_rows; row += kTileRows) {
      multiply_columns<Block, kTileRows, kTileColumns>(rows + row * n_blocks, n_blocks, x, j, end, out + row, out_stride);
    }
    for (; row < n_rows; ++row) {
      multiply_columns<Block, 1, kTileColumns>(rows + row * n_blocks, n_blocks, x, j, end, out + row, out_stride);
    }
  }
}

}  // namespace
}  // namespace pshard
