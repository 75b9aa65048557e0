// One row of activations with interleaved rows: nothing is decoded twice, so nothing is stored. Over a type V of vectors, as in
// x86_panels.hpp, whose lanes are the rows of a group. Codes come in pieces of eight columns, so the lanes are the rows in pairs.
#pragma once

#include <type_traits>

#include "probe/x86_codes.hpp"

namespace pshard {
namespace {

// Scales and mins of a block of Q4_K, a row in each lane.
template <typename V>
struct InterleavedScales {
  static constexpr int64_t kBytes = 16 * V::kLanes;  // F16 scales, F16 mins, three words of six-bit scales

  explicit InterleavedScales(const uint8_t* block)
      : scales_(V::load_half(reinterpret_cast<const uint16_t*>(block))),
        mins_(V::load_half(reinterpret_cast<const uint16_t*>(block + 2 * V::kLanes))),
        words_{V::load_ints(block + 4 * V::kLanes), V::load_ints(block + 8 * V::kLanes), V::load_ints(block + 12 * V::kLanes)} {}

  void pair() {
    scales_ = V::in_pairs(scales_);
    mins_ = V::in_pairs(mins_);
    for (typename V::Ints& word : words_) word = V::in_pairs(word);
  }
  [[nodiscard]] typename V::Floats scale() const { return scales_; }
  [[nodiscard]] typename V::Floats min() const { return mins_; }
  [[nodiscard]] typename V::Ints sub_scale(int sub) const { return six_bits(0, 0, sub); }
  [[nodiscard]] typename V::Ints sub_min(int sub) const { return six_bits(1, 4, sub); }

 private:
  // The first four lie in the low six bits of a word's bytes; of the others, four bits lie in the last word and two in the high bits of the
  // first word or the second.
  [[nodiscard]] typename V::Ints six_bits(int word, int shift, int sub) const {
    if (sub < 4) return V::bits(words_[word], 8 * sub, 63);
    const int byte = 8 * (sub - 4);
    return V::either(V::bits(words_[2], byte + shift, 15), V::shift_left(V::bits(words_[word], byte + 6, 3), 4));
  }

  typename V::Floats scales_;
  typename V::Floats mins_;
  typename V::Ints words_[3];
};

// Activations come to the lanes from a register with sixteen of them, and 4-bit codes by way of a table, as in llama.cpp: with weights in a
// near cache, where experts of a prompt are multiplied, the permutations are what limits it.
template <typename V, int kPiece>
inline typename V::Ints add_signed_piece(typename V::Ints sum, const int8_t table[16], typename V::Ints low, typename V::Ints high,
                                         typename V::Ints x) {
  low = V::looked_up(table, low);
  high = V::looked_up(table, high);
  sum = V::multiply_signed(sum, V::first_fours(low, high), V::template four<2 * kPiece>(x));
  return V::multiply_signed(sum, V::last_fours(low, high), V::template four<2 * kPiece + 1>(x));
}

template <typename V, int kPiece>
inline typename V::Ints add_piece(typename V::Ints pairs, typename V::Ints low, typename V::Ints high, typename V::Ints x) {
  pairs = V::add_pairs(pairs, V::first_fours(low, high), V::template four<2 * kPiece>(x));
  return V::add_pairs(pairs, V::last_fours(low, high), V::template four<2 * kPiece + 1>(x));
}

// The scales that a group of such blocks begins with, and how many bytes they are.
template <typename V, typename Block>
inline typename V::Floats scales_of_group(const uint8_t* from) {
  if constexpr (std::is_same_v<Block, BlockMXFP4>) {
    return V::powers_of_two(from);
  } else {
    return V::load_half(reinterpret_cast<const uint16_t*>(from));
  }
}
template <typename Block>
inline constexpr int64_t kScaleBytes = sizeof(Block) - 16;

template <typename V, typename Block>
inline typename V::Floats interleaved_dots(const Block* group, const Activations& x, int64_t j) {
  const auto* from = reinterpret_cast<const uint8_t*>(group);
  const int8_t* codes = x.codes + j * x.n_columns;
  typename V::Floats total = V::zero();
  for (int64_t b = 0; b < x.n_scales; ++b, codes += 32) {
    const typename V::Floats scale = V::in_pairs(scales_of_group<V, Block>(from));
    from += kScaleBytes<Block> * V::kLanes;
    const typename V::Ints near = V::both_halves(codes);
    const typename V::Ints far = V::both_halves(codes + 16);
    typename V::Ints pieces[4];
    for (int i = 0; i < 4; ++i, from += 4 * V::kLanes) pieces[i] = V::load_ints(from);
    typename V::Ints sum = V::broadcast_int(0);
    sum = add_signed_piece<V, 0>(sum, kStepsOf<Block>, V::low_nibbles(pieces[0]), V::low_nibbles(pieces[1]), near);
    sum = add_signed_piece<V, 1>(sum, kStepsOf<Block>, V::low_nibbles(pieces[2]), V::low_nibbles(pieces[3]), near);
    sum = add_signed_piece<V, 0>(sum, kStepsOf<Block>, V::high_nibbles(pieces[0]), V::high_nibbles(pieces[1]), far);
    sum = add_signed_piece<V, 1>(sum, kStepsOf<Block>, V::high_nibbles(pieces[2]), V::high_nibbles(pieces[3]), far);
    total = V::fma(V::to_floats(sum), V::mul(scale, V::broadcast(x.scales[j * x.n_scales + b])), total);
  }
  return total;
}

template <typename V>
inline typename V::Floats interleaved_dots(const BlockQ4_K* group, const Activations& x, int64_t j) {
  const auto* from = reinterpret_cast<const uint8_t*>(group);
  const int8_t* codes = x.codes + j * x.n_columns;
  const float* sums = x.sums + j * x.n_sub_blocks;
  typename V::Floats total = V::zero();
  for (int64_t b = 0; b < x.n_scales; ++b, sums += 8) {
    InterleavedScales<V> scales(from);
    scales.pair();
    from += InterleavedScales<V>::kBytes;
    typename V::Ints sum = V::broadcast_int(0);
    typename V::Ints less = V::broadcast_int(0);
    for (int pair = 0; pair < 4; ++pair, codes += 64) {
      typename V::Ints even = V::broadcast_int(0);  // sums of two products, of 16 bits: no more than 8 * 2 * 15 * 127
      typename V::Ints odd = V::broadcast_int(0);
      for (int half = 0; half < 2; ++half, from += 16 * V::kLanes) {
        const typename V::Ints x_even = V::both_halves(codes + 16 * half);
        const typename V::Ints x_odd = V::both_halves(codes + 32 + 16 * half);
        typename V::Ints pieces[4];
        for (int i = 0; i < 4; ++i) pieces[i] = V::load_ints(from + 4 * i * V::kLanes);
        even = add_piece<V, 0>(even, V::low_nibbles(pieces[0]), V::low_nibbles(pieces[1]), x_even);
        even = add_piece<V, 1>(even, V::low_nibbles(pieces[2]), V::low_nibbles(pieces[3]), x_even);
        odd = add_piece<V, 0>(odd, V::high_nibbles(pieces[0]), V::high_nibbles(pieces[1]), x_odd);
        odd = add_piece<V, 1>(odd, V::high_nibbles(pieces[2]), V::high_nibbles(pieces[3]), x_odd);
      }
      sum = V::add_ints(sum, V::scale_pairs(even, scales.sub_scale(2 * pair)));
      sum = V::add_ints(sum, V::scale_pairs(odd, scales.sub_scale(2 * pair + 1)));
      less = V::add_ints(less, V::mul_ints(scales.sub_min(2 * pair), V::to_ints(V::broadcast(sums[2 * pair]))));
      less = V::add_ints(less, V::mul_ints(scales.sub_min(2 * pair + 1), V::to_ints(V::broadcast(sums[2 * pair + 1]))));
    }
    const typename V::Floats part = V::fma_minus(V::to_floats(less), scales.min(), V::mul(V::to_floats(sum), scales.scale()));
    total = V::fma(part, V::broadcast(x.scales[j * x.n_scales + b]), total);
  }
  return total;
}

template <typename V, typename Block>
void multiply_interleaved(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t j, float* out, int64_t out_stride) {
  constexpr int64_t columns = std::is_same_v<Block, BlockQ4_K> ? 256 : 32;
  const int64_t row_blocks = x.n_columns / columns;
  for (int64_t row = 0; row < n_rows; row += V::kLanes) {
    const typename V::Floats dots = interleaved_dots<V>(reinterpret_cast<const Block*>(weights) + row * row_blocks, x, j);
    V::store(out + j * out_stride + row, V::in_order(dots));
  }
}

}  // namespace
}  // namespace pshard
