// Kernels for AVX2 with FMA and F16C. Only this file is compiled for them; kernels() hands them out where the CPU has them.
#include <immintrin.h>

#include "probe/kernels.hpp"

namespace pshard {
namespace {

// Whether multiply_add() takes unsigned codes of all eight bits.
constexpr bool kTakesAllBits = false;

// Pairs of unsigned with signed bytes stay within 16 bits: codes are at most 63, or 128 times 127.
inline __m256i multiply_add(__m256i sum, __m256i codes, __m256i x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}

}  // namespace
}  // namespace pshard

#include "probe/x86_table.hpp"

namespace pshard {
namespace {

uint64_t sum_words(const uint64_t* words, int64_t n) {
  __m256i sums[8];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 32) {
    for (int v = 0; v < 8; ++v) sums[v] = _mm256_add_epi64(sums[v], load(words + i + 4 * v));
  }
  for (int v = 1; v < 8; ++v) sums[0] = _mm256_add_epi64(sums[0], sums[v]);
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums[0]);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

}  // namespace

const Kernels kAvx2Kernels = table_of<Eight>(sum_words);

}  // namespace pshard
