// Quantised blocks for the matrix units of a GPU. A piece is 32 columns of a row: its bytes are copied to shared memory as they are, words
// of many rows at once, and decoded from there into the halves that a lane multiplies.
//
// Products sum over columns in any order, as long as both sides keep it. In each 16 columns lane t of four takes columns 4t to 4t + 3,
// which lie in one word of codes, where the units expect 2t, 2t + 1, 2t + 8 and 2t + 9: activations are stored in that order
// (`place_in_tile`).
//
// Blocks of an odd number of words lie at even addresses. Copies begin at the word that a piece begins in, and decoding knows whether it
// begins late, in the middle of it.
#pragma once

#include "probe/gpu_decode.cuh"

namespace pshard {
namespace {

constexpr int kPieceColumns = 32;

// Of the activation of a column, among those of its 16.
__device__ inline int64_t place_in_tile(int64_t column) {
  const int64_t in_four = column % 4;
  return column / 16 * 16 + column % 16 / 4 * 2 + in_four % 2 + in_four / 2 * 8;
}

// Word `i` of those that hold `at` and what follows. Nothing is read at `end` or behind it, which may be in the middle of a word.
__device__ inline void copy_word(uint32_t* to, const uint8_t* at, int i, const uint8_t* end) {
  const uint8_t* from = at - (is_late(at) ? 2 : 0) + 4 * i;
  if (end - from >= 4) {
    copy_async4(to, from);
  } else {
    *to = load2(from);
  }
}

// Word `i` of what begins with a word, or in the middle of one.
__device__ inline uint32_t word_at(const uint32_t* from, int i, bool late) {
  return permute_bytes(from[i], from[i + late], late ? 0x5432U : 0x3210U);
}
__device__ inline uint16_t half_at(const uint32_t* from, bool late) { return static_cast<uint16_t>(from[0] >> (late ? 16 : 0)); }
__device__ inline uint32_t twice(uint16_t half) { return pack(half, half); }

// (byte - offset) * scale of four bytes, with one rounding; `thousand` is 1024 + offset, twice. A half of 1024 + n has n, of a byte, for
// its last bits.
__device__ inline void scaled(uint32_t bytes, uint32_t thousand, uint32_t scale, uint32_t (&out)[2]) {
  out[0] = permute_bytes(bytes, 0x64646464U, 0x4140U);
  out[1] = permute_bytes(bytes, 0x64646464U, 0x4342U);
#pragma unroll
  for (uint32_t& two : out) two = multiply_halves(subtract_halves(two, thousand), scale);
}

// words: from one row to the next in shared memory, so that 8 rows lie in different banks. copies: that bring a piece, in any order.
// decode: of each 16 columns, the halves that lane t of four multiplies. Types whose codes take long to become halves are decoded once, by
// the thread that reads them, and lie in shared memory as F16.
struct HalvesPiece {
  static constexpr bool is_decoded_before = true;
  static constexpr int words = 24;
  static constexpr int copies = 4;

  __device__ static void copy(uint32_t* to, const uint8_t* row, int piece, int i) {
    copy_async16(to + 4 * i, row + int64_t{64} * piece + 16 * i);
  }
  __device__ static bool starts_late(bool, int) { return false; }
  __device__ static void decode(const uint32_t* from, int, bool, int t, uint32_t (&out)[2][2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 words_of_lane = *reinterpret_cast<const uint2*>(from + 8 * i + 2 * t);
      out[i][0] = words_of_lane.x;
      out[i][1] = words_of_lane.y;
    }
  }
};

template <WeightType type>
struct Piece : HalvesPiece {};

template <>
struct Piece<WeightType::f16> : HalvesPiece {
  static constexpr bool is_decoded_before = false;
};

template <>
struct Piece<WeightType::q8_0> {
  static constexpr bool is_decoded_before = false;
  static constexpr int words = 12;
  static constexpr int copies = 9;

  __device__ static void copy(uint32_t* to, const uint8_t* row, int piece, int i) {
    const uint8_t* block = row + int64_t{34} * piece;
    copy_word(to + i, block, i, block + 34);
  }
  __device__ static bool starts_late(bool row_is_late, int piece) { return row_is_late != (piece % 2 != 0); }
  __device__ static void decode(const uint32_t* from, int, bool late, int t, uint32_t (&out)[2][2]) {
    const uint32_t scale = twice(half_at(from, late));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t codes = word_at(from + late, 4 * i + t, !late);  // 2 bytes on
      scaled(codes ^ 0x80808080U, 0x64806480U, scale, out[i]);
    }
  }
};

template <>
struct Piece<WeightType::q4_0> {
  static constexpr bool is_decoded_before = false;
  static constexpr int words = 12;
  static constexpr int copies = 5;

  __device__ static void copy(uint32_t* to, const uint8_t* row, int piece, int i) {
    const uint8_t* block = row + int64_t{18} * piece;
    copy_word(to + i, block, i, block + 18);
  }
  __device__ static bool starts_late(bool row_is_late, int piece) { return row_is_late != (piece % 2 != 0); }
  __device__ static void decode(const uint32_t* from, int, bool late, int t, uint32_t (&out)[2][2]) {
    const uint32_t scale = twice(half_at(from, late));
    const uint32_t codes = word_at(from + late, t, !late);
    scaled(codes & 0x0f0f0f0fU, 0x64086408U, scale, out[0]);
    scaled(codes >> 4 & 0x0f0f0f0fU, 0x64086408U, scale, out[1]);
  }
};

// What a thread holds that decodes 16 columns, between reading and decoding them; slices are numbered along the row.
constexpr int kSliceColumns = 16;

template <WeightType type>
struct Slice {
  using Of = Run<type, kSliceColumns / 4>;
  Of run;

  __device__ static Slice load(const uint8_t* row, int slice) {
    constexpr int slices = Of::stripe / kSliceColumns;  // of a stripe
    Slice found{Of::load(row, slice / (slices * Of::parts), slice % slices * kSliceColumns)};
    found.run.take(slice / slices % Of::parts);
    return found;
  }
  // A float of 2^23 + n has n, of a byte, for its last bits. Halves would round more than once: scales are products themselves.
  __device__ void decode(uint32_t (&out)[4][2]) const {
    uint32_t codes[4];
    const Scale by = run.decode(codes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float values[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float above = as_float(permute_bytes(codes[i] ^ 0x80808080U, 0x4b000000U, 0x7540U + static_cast<uint32_t>(j)));
        values[j] = by.scale * (above - (8388608.0F + 128.0F));
        if (Of::mins != Mins::none) values[j] -= by.min;
      }
      out[i][0] = pack_halves(values[0], values[1]);
      out[i][1] = pack_halves(values[2], values[3]);
    }
  }
};

// Of numbers that are no halves.
template <int n>
struct NumberSlice {
  uint32_t words[n];

  __device__ static NumberSlice load(const uint8_t* row, int slice) {
    NumberSlice found;
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      const uint4 four = load16(row + int64_t{4 * n} * slice + 4 * i);
      found.words[i] = four.x;
      found.words[i + 1] = four.y;
      found.words[i + 2] = four.z;
      found.words[i + 3] = four.w;
    }
    return found;
  }
};

template <>
struct Slice<WeightType::bf16> : NumberSlice<kSliceColumns / 2> {
  __device__ static Slice load(const uint8_t* row, int slice) { return {NumberSlice::load(row, slice)}; }
  __device__ void decode(uint32_t (&out)[4][2]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i / 2][i % 2] = pack_halves(lower_bfloat(words[i]), upper_bfloat(words[i]));
  }
};

template <>
struct Slice<WeightType::f32> : NumberSlice<kSliceColumns> {
  __device__ static Slice load(const uint8_t* row, int slice) { return {NumberSlice::load(row, slice)}; }
  __device__ void decode(uint32_t (&out)[4][2]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i / 2][i % 2] = pack_halves(as_float(words[2 * i]), as_float(words[2 * i + 1]));
  }
};

// Of types that are decoded later.
struct NoSlice {
  __device__ static NoSlice load(const uint8_t*, int) { return {}; }
  __device__ void decode(uint32_t (&)[4][2]) const {}
};

}  // namespace
}  // namespace pshard
