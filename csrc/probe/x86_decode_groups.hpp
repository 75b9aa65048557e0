// Decoding of interleaved rows to panels. Over a type V of vectors, as in x86_panels.hpp.
#pragma once

#include "probe/x86_decode.hpp"
#include "probe/x86_interleaved.hpp"

namespace pshard {
namespace {

// Eight bytes of codes of each row of a group, as two vectors of a panel: four columns of all rows in each.
template <typename V>
inline void store_piece(uint8_t* to, typename V::Ints low, typename V::Ints high) {
  V::store_ints(to, V::in_order(V::first_fours(low, high)));
  V::store_ints(to + 4 * V::kLanes, V::in_order(V::last_fours(low, high)));
}

// Interleaved groups have as many rows as a panel. Codes of Q4_0, IQ4_NL and MXFP4 multiply with their sign, as in llama.cpp.
template <typename Block>
struct InterleavedSteps {
  static constexpr int kColumns = 32, kSubs = 1, kSubColumns = 32;
  static constexpr bool kHasMins = false, kHasOffset = false;
  static constexpr int64_t kRowsPerDecoding = kNearRows;  // of activations, before codes are decoded anew

  template <typename V>
  static typename V::Ints multiply(typename V::Ints sum, typename V::Ints codes, typename V::Ints x) {
    return V::multiply_signed(sum, codes, x);
  }

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t /*n_rows*/, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const uint8_t* from = weights + (first * row_blocks + block * V::kLanes) * static_cast<int64_t>(sizeof(Block));
    uint8_t* to = panel.codes;
    for (int64_t b = 0; b < n_blocks; ++b, to += kColumns * V::kLanes) {
      V::store(panel.scales + b * V::kLanes, scales_of_group<V, Block>(from));
      from += kScaleBytes<Block> * V::kLanes;
      for (int piece = 0; piece < 2; ++piece, from += 8 * V::kLanes) {
        const typename V::Ints low = V::load_ints(from);
        const typename V::Ints high = V::load_ints(from + 4 * V::kLanes);
        store_piece<V>(to + piece * 8 * V::kLanes, V::looked_up(kStepsOf<Block>, V::low_nibbles(low)),
                       V::looked_up(kStepsOf<Block>, V::low_nibbles(high)));
        store_piece<V>(to + (piece + 2) * 8 * V::kLanes, V::looked_up(kStepsOf<Block>, V::high_nibbles(low)),
                       V::looked_up(kStepsOf<Block>, V::high_nibbles(high)));
      }
    }
  }
};

struct InterleavedQ4_K {
  static constexpr int kColumns = 256, kSubs = 8, kSubColumns = 32;
  static constexpr bool kHasMins = true, kHasOffset = false;
  static constexpr int64_t kRowsPerDecoding = 16;  // as llama.cpp's

  template <typename V>
  static typename V::Ints multiply(typename V::Ints pairs, typename V::Ints codes, typename V::Ints x) {
    return V::add_pairs(pairs, codes, x);
  }
  template <typename V>
  static typename V::Ints scale(typename V::Ints pairs, typename V::Ints scales) {
    return V::scale_pairs(pairs, scales);
  }

  template <typename V>
  static void decode(const uint8_t* weights, int64_t row_blocks, int64_t first, int64_t /*n_rows*/, int64_t block, int64_t n_blocks,
                     Panel& panel) {
    const uint8_t* from = weights + (first * row_blocks + block * V::kLanes) * static_cast<int64_t>(sizeof(BlockQ4_K));
    uint8_t* to = panel.codes;
    for (int64_t b = 0; b < n_blocks; ++b) {
      const InterleavedScales<V> scales(from);
      for (int sub = 0; sub < kSubs; ++sub) {
        V::store_ints(panel.sub_scales + (b * kSubs + sub) * V::kLanes, scales.sub_scale(sub));
        V::store_ints(panel.sub_mins + (b * kSubs + sub) * V::kLanes, scales.sub_min(sub));
      }
      V::store(panel.scales + b * V::kLanes, scales.scale());
      V::store(panel.mins + b * V::kLanes, scales.min());
      from += InterleavedScales<V>::kBytes;
      for (int pair = 0; pair < 4; ++pair, to += 64 * V::kLanes) {
        for (int piece = 0; piece < 4; ++piece, from += 8 * V::kLanes) {
          const typename V::Ints low = V::load_ints(from);
          const typename V::Ints high = V::load_ints(from + 4 * V::kLanes);
          store_piece<V>(to + piece * 8 * V::kLanes, V::low_nibbles(low), V::low_nibbles(high));
          store_piece<V>(to + (piece + 4) * 8 * V::kLanes, V::high_nibbles(low), V::high_nibbles(high));
        }
      }
    }
  }
};

}  // namespace
}  // namespace pshard
