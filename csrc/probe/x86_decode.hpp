// Decoding of plain rows to panels. Over a type V of vectors, as in x86_panels.hpp.
#pragma once

#include "probe/x86_dots.hpp"

namespace pshard {
namespace {

// `codes` are [sub-block][column / 4][row][column % 4]. A weight is its code times the scale of its sub-block times that of its block, less
// both mins multiplied: [sub-block][row] and [block][row]. A format whose blocks are not divided has no scales of sub-blocks.
struct Panel {
  uint8_t* codes;
  int32_t* sub_scales;
  int32_t* sub_mins;
  float* scales;
  float* mins;
};

// Four columns of one row go to one lane.
template <typename V>
inline void scatter(__m256i codes, uint8_t* to) {
  alignas(32) uint32_t words[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), codes);
  for (int i = 0; i < 8; ++i) __builtin_memcpy(to + i * 4 * V::kLanes, words + i, 4);
}

// Rows that a last panel lacks count nothing.
template <typename V>
inline void clear(Panel& panel, int64_t n_rows, int64_t n_blocks) {
  for (int64_t i = 0; i < n_blocks; ++i) {
    for (int64_t row = n_rows; row < V::kLanes; ++row) panel.scales[i * V::kLanes + row] = panel.mins[i * V::kLanes + row] = 0.0F;
  }
}

// Blocks of 256 columns as they lie in a file. Signed codes are stored with an offset where products take all eight bits of unsigned ones.
template <typename Block>
struct PlainBlocks {
  using Unpack = Unpacked<Block>;
  static constexpr int kColumns = 256, kSubs = pshard::kSubs<Block>, kSubColumns = Unpack::kSubColumns;
  static constexpr bool kIsWidened = kIsSigned<Block> && kTakesAllBits;
  static constexpr bool kHasMins = Unpack::kHasMins, kHasOffset = Unpack::kOffset != 0 || kIsWidened;

  template <typename V>
  static typename V::Ints multiply(typename V::Ints sum, typename V::Ints codes, typename V::Ints x) {
    if constexpr (kIsSigned<Block> && !kIsWidened) return V::multiply_signed(sum, codes, x);
    return V::multiply_add(sum, codes, x);
  }
  template <typename V>
  static typename V::Ints scale(typename V::Ints sum, typename V::Ints scales) {
    return V::mul_ints(sum, scales);
  }

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t n_rows, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const auto* blocks = reinterpret_cast<const Block*>(weights) + first * row_blocks + block;
    clear<V>(panel, n_rows, n_blocks);
    for (int64_t row = 0; row < n_rows; ++row) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const Block& from = blocks[row * row_blocks + b];
        const SubScales unpacked = Unpack::sub_scales(from);
        alignas(16) int8_t scales[16];
        alignas(16) int8_t mins[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(scales), unpacked.scales);
        _mm_store_si128(reinterpret_cast<__m128i*>(mins), unpacked.mins);
        for (int64_t sub = 0; sub < kSubs; ++sub) {
          panel.sub_scales[(b * kSubs + sub) * V::kLanes + row] = scales[sub];
          if constexpr (kHasMins) panel.sub_mins[(b * kSubs + sub) * V::kLanes + row] = mins[sub];
        }
        panel.scales[b * V::kLanes + row] = _cvtsh_ss(from.scale);
        if constexpr (kHasMins) panel.mins[b * V::kLanes + row] = _cvtsh_ss(from.min);
        uint8_t* to = panel.codes + (b * kColumns * V::kLanes + 4 * row);
#pragma GCC unroll 8
        for (int group = 0; group < 8; ++group, to += 32 * V::kLanes) {
          __m256i codes = Unpack::codes(from, group);
          if constexpr (kIsWidened) codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
          scatter<V>(codes, to);
        }
      }
    }
  }
};

}  // namespace
}  // namespace pshard
