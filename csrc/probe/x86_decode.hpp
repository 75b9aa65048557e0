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

struct PlainQ4_K {
  static constexpr int kColumns = 256, kSubs = 8, kSubColumns = 32;
  static constexpr bool kHasMins = true, kHasOffset = false;

  template <typename V>
  static typename V::Ints multiply(typename V::Ints sum, typename V::Ints codes, typename V::Ints x) {
    return V::multiply_add(sum, codes, x);
  }
  template <typename V>
  static typename V::Ints scale(typename V::Ints sum, typename V::Ints scales) {
    return V::mul_ints(sum, scales);
  }

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t n_rows, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const auto* blocks = reinterpret_cast<const BlockQ4_K*>(weights) + first * row_blocks + block;
    clear<V>(panel, n_rows, n_blocks);
    for (int64_t row = 0; row < n_rows; ++row) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const BlockQ4_K& from = blocks[row * row_blocks + b];
        const Q4_K_Scales unpacked = unpack_scales(from);
        alignas(16) uint8_t scales[16];
        alignas(16) uint8_t mins[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(scales), unpacked.scales);
        _mm_store_si128(reinterpret_cast<__m128i*>(mins), unpacked.mins);
        for (int64_t sub = 0; sub < kSubs; ++sub) {
          panel.sub_scales[(b * kSubs + sub) * V::kLanes + row] = scales[sub];
          panel.sub_mins[(b * kSubs + sub) * V::kLanes + row] = mins[sub];
        }
        panel.scales[b * V::kLanes + row] = _cvtsh_ss(from.scale);
        panel.mins[b * V::kLanes + row] = _cvtsh_ss(from.min);
        uint8_t* to = panel.codes + (b * kColumns * V::kLanes + 4 * row);
        for (int pair = 0; pair < 4; ++pair, to += 64 * V::kLanes) {
          const __m256i bytes = load(from.codes + 32 * pair);
          scatter<V>(low_nibbles(bytes), to);
          scatter<V>(high_nibbles(bytes), to + 32 * V::kLanes);
        }
      }
    }
  }
};

struct PlainQ6_K {
  static constexpr int kColumns = 256, kSubs = 16, kSubColumns = 16;
  static constexpr bool kHasMins = false, kHasOffset = true;

  template <typename V>
  static typename V::Ints multiply(typename V::Ints sum, typename V::Ints codes, typename V::Ints x) {
    return V::multiply_add(sum, codes, x);
  }
  template <typename V>
  static typename V::Ints scale(typename V::Ints sum, typename V::Ints scales) {
    return V::mul_ints(sum, scales);
  }

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t n_rows, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const auto* blocks = reinterpret_cast<const BlockQ6_K*>(weights) + first * row_blocks + block;
    clear<V>(panel, n_rows, n_blocks);
    for (int64_t row = 0; row < n_rows; ++row) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const BlockQ6_K& from = blocks[row * row_blocks + b];
        for (int64_t sub = 0; sub < kSubs; ++sub) panel.sub_scales[(b * kSubs + sub) * V::kLanes + row] = from.scales[sub];
        panel.scales[b * V::kLanes + row] = _cvtsh_ss(from.scale);
        uint8_t* to = panel.codes + (b * kColumns * V::kLanes + 4 * row);
        for (int half = 0; half < 2; ++half) {
          const Q6_K_Codes codes = codes_of(from, half);
          for (int i = 0; i < 4; ++i, to += 32 * V::kLanes) scatter<V>(codes.by_32_columns[i], to);
        }
      }
    }
  }
};

}  // namespace
}  // namespace pshard
