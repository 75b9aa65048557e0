// Decoding of plain and interleaved rows to panels. Over a type V of vectors, as in x86_panels.hpp.
#pragma once

#include "probe/x86_dots.hpp"
#include "probe/x86_interleaved.hpp"

namespace pshard {
namespace {

// `codes` are unsigned, [sub-block][column / 4][row][column % 4]; `scales` and `mins` [sub-block][row].
struct Panel {
  uint8_t* codes;
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
inline void clear(Panel& panel, int64_t n_rows, int64_t n_subs) {
  for (int64_t i = 0; i < n_subs; ++i) {
    for (int64_t row = n_rows; row < V::kLanes; ++row) panel.scales[i * V::kLanes + row] = panel.mins[i * V::kLanes + row] = 0.0F;
  }
}

struct PlainQ4_K {
  static constexpr int kColumns = 256, kSubs = 8, kSubColumns = 32;
  static constexpr bool kHasMins = true, kHasOffset = false;

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t n_rows, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const auto* blocks = reinterpret_cast<const BlockQ4_K*>(weights) + first * row_blocks + block;
    clear<V>(panel, n_rows, n_blocks * kSubs);
    for (int64_t row = 0; row < n_rows; ++row) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const BlockQ4_K& from = blocks[row * row_blocks + b];
        const Q4_K_Scales unpacked = unpack_scales(from);
        alignas(32) float scales[8];
        alignas(32) float mins[8];
        const __m256 scale = _mm256_set1_ps(_cvtsh_ss(from.scale));
        const __m256 min = _mm256_set1_ps(_cvtsh_ss(from.min));
        _mm256_store_ps(scales, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unpacked.scales))));
        _mm256_store_ps(mins, _mm256_mul_ps(min, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unpacked.mins))));
        for (int64_t sub = 0; sub < kSubs; ++sub) {
          panel.scales[(b * kSubs + sub) * V::kLanes + row] = scales[sub];
          panel.mins[(b * kSubs + sub) * V::kLanes + row] = mins[sub];
        }
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
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t n_rows, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const auto* blocks = reinterpret_cast<const BlockQ6_K*>(weights) + first * row_blocks + block;
    clear<V>(panel, n_rows, n_blocks * kSubs);
    for (int64_t row = 0; row < n_rows; ++row) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const BlockQ6_K& from = blocks[row * row_blocks + b];
        const float scale = _cvtsh_ss(from.scale);
        for (int64_t sub = 0; sub < kSubs; ++sub) {
          panel.scales[(b * kSubs + sub) * V::kLanes + row] = scale * static_cast<float>(from.scales[sub]);
        }
        uint8_t* to = panel.codes + (b * kColumns * V::kLanes + 4 * row);
        for (int half = 0; half < 2; ++half) {
          const Q6_K_Codes codes = codes_of(from, half);
          for (int i = 0; i < 4; ++i, to += 32 * V::kLanes) scatter<V>(codes.by_32_columns[i], to);
        }
      }
    }
  }
};

// Interleaved groups have as many rows as a panel, so codes need no moving.
struct InterleavedQ4_0 {
  static constexpr int kColumns = 32, kSubs = 1, kSubColumns = 32;
  static constexpr bool kHasMins = false, kHasOffset = true;

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t /*n_rows*/, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const uint8_t* from = weights + (first * row_blocks + block * V::kLanes) * static_cast<int64_t>(sizeof(BlockQ4_0));
    uint8_t* to = panel.codes;
    for (int64_t b = 0; b < n_blocks; ++b, to += kColumns * V::kLanes) {
      V::store(panel.scales + b * V::kLanes, V::load_half(reinterpret_cast<const uint16_t*>(from)));
      from += 2 * V::kLanes;
      for (int four = 0; four < 4; ++four, from += 4 * V::kLanes) {
        const typename V::Ints bytes = V::load_ints(from);
        V::store_ints(to + four * 4 * V::kLanes, V::low_nibbles(bytes));
        V::store_ints(to + (four + 4) * 4 * V::kLanes, V::high_nibbles(bytes));
      }
    }
  }
};

struct InterleavedQ4_K {
  static constexpr int kColumns = 256, kSubs = 8, kSubColumns = 32;
  static constexpr bool kHasMins = true, kHasOffset = false;

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t /*n_rows*/, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const uint8_t* from = weights + (first * row_blocks + block * V::kLanes) * static_cast<int64_t>(sizeof(BlockQ4_K));
    uint8_t* to = panel.codes;
    for (int64_t b = 0; b < n_blocks; ++b) {
      const InterleavedScales<V> scales(from);
      for (int sub = 0; sub < kSubs; ++sub) {
        V::store(panel.scales + (b * kSubs + sub) * V::kLanes, scales.scale(sub));
        V::store(panel.mins + (b * kSubs + sub) * V::kLanes, scales.min(sub));
      }
      from += InterleavedScales<V>::kBytes;
      for (int pair = 0; pair < 4; ++pair, to += 64 * V::kLanes) {
        for (int four = 0; four < 8; ++four, from += 4 * V::kLanes) {
          const typename V::Ints bytes = V::load_ints(from);
          V::store_ints(to + four * 4 * V::kLanes, V::low_nibbles(bytes));
          V::store_ints(to + (four + 8) * 4 * V::kLanes, V::high_nibbles(bytes));
        }
      }
    }
  }
};

}  // namespace
}  // namespace pshard
