// Kernels for AVX-512 with VNNI. Only this file is compiled for them; kernels() hands them out where the CPU has them.
#include <immintrin.h>

#include "probe/kernels.hpp"

namespace pshard {
namespace {

// Whether multiply_add() takes unsigned codes of all eight bits.
constexpr bool kTakesAllBits = true;

inline __m256i multiply_add(__m256i sum, __m256i codes, __m256i x) { return _mm256_dpbusd_epi32(sum, codes, x); }

}  // namespace
}  // namespace pshard

#include "probe/x86_table.hpp"

namespace pshard {
namespace {

struct Sixteen {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kPanelRows = 8;  // of activations at once, for 32 registers
  static constexpr int kTileRows = 4, kTileColumns = 4;
  static constexpr int kHalfRows = 5, kHalfColumns = 4, kMixRows = 4, kMixVectors = 4;

  static Ints load_ints(const void* at) { return _mm512_loadu_si512(at); }
  static void store_ints(void* to, Ints v) { _mm512_storeu_si512(to, v); }
  static Ints broadcast_int(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints broadcast_four(const int8_t* at) {
    int32_t word;
    __builtin_memcpy(&word, at, 4);
    return _mm512_set1_epi32(word);
  }
  static Ints multiply_add(Ints sum, Ints codes, Ints x) { return _mm512_dpbusd_epi32(sum, codes, x); }
  static Ints multiply_signed(Ints sum, Ints codes, Ints x) {
    return _mm512_dpbusd_epi32(sum, _mm512_abs_epi8(x), _mm512_mask_sub_epi8(codes, _mm512_movepi8_mask(x), _mm512_setzero_si512(), codes));
  }
  static Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints mul_ints(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static Ints to_ints(Floats v) { return _mm512_cvtps_epi32(v); }
  static Ints low_nibbles(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static Ints high_nibbles(Ints v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
  static Ints bits(Ints v, int shift, int mask) {
    return _mm512_and_si512(_mm512_srli_epi32(v, static_cast<unsigned>(shift)), _mm512_set1_epi32(mask));
  }
  static Ints shift_left(Ints v, int by) { return _mm512_slli_epi32(v, static_cast<unsigned>(by)); }
  static Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
  static Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats load(const float* at) { return _mm512_loadu_ps(at); }
  static Floats load_half(const uint16_t* at) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))); }
  static Floats load_bfloat(const uint16_t* at) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static void store_half(uint16_t* to, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  static Floats broadcast(float value) { return _mm512_set1_ps(value); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats fma_minus(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  static float sum(Floats v) { return _mm512_reduce_add_ps(v); }
};

uint64_t sum_words(const uint64_t* words, int64_t n) {
  __m512i sums[8];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 64) {
    for (int v = 0; v < 8; ++v) sums[v] = _mm512_add_epi64(sums[v], _mm512_loadu_si512(words + i + 8 * v));
  }
  for (int v = 1; v < 8; ++v) sums[0] = _mm512_add_epi64(sums[0], sums[v]);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, sums[0]);
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum += lane;
  return sum;
}

}  // namespace

const Kernels kAvx512Kernels = table_of<Sixteen>(sum_words);

}  // namespace pshard
