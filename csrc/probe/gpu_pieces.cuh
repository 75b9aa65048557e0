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

__device__ inline bool is_late(const uint8_t* at) { return (reinterpret_cast<uintptr_t>(at) & 2U) != 0; }

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

// Where scales are products themselves, halves would round more than once. A float of 2^23 + n has n for its last bits.
__device__ inline float float_of_byte(uint32_t bytes, int index) {
  return as_float(permute_bytes(bytes, 0x4b000000U, 0x7540U + static_cast<uint32_t>(index))) - 8388608.0F;
}
template <typename Value>
__device__ inline void through_floats(uint32_t bytes, Value value, uint32_t (&out)[2]) {
  out[0] = pack_halves(value(float_of_byte(bytes, 0)), value(float_of_byte(bytes, 1)));
  out[1] = pack_halves(value(float_of_byte(bytes, 2)), value(float_of_byte(bytes, 3)));
}

// words: from one row to the next in shared memory, so that 8 rows lie in different banks. copies: that bring a piece, in any order.
// decode: of each 16 columns, the halves that lane t of four multiplies.
template <WeightType type>
struct Piece;

template <>
struct Piece<WeightType::f16> {
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

template <>
struct Piece<WeightType::q8_0> {
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

// Types whose codes take long to become halves are decoded once, by the thread that reads them, and lie in shared memory as F16. What it
// holds meanwhile, of 16 columns; slices are numbered along the row.
constexpr int kSliceColumns = 16;

template <WeightType type>
struct Slice {
  static constexpr bool is_used = false;
  __device__ static Slice load(const uint8_t*, int) { return {}; }
  __device__ void decode(uint32_t (&)[4][2]) const {}
};

// 16 bytes at an even address.
__device__ inline void load_late(uint32_t (&out)[4], const uint8_t* from) {
  const bool late = is_late(from);
  const uint8_t* first = from - (late ? 2 : 0);
  uint32_t words[5];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = load4(first + 4 * i);
  words[4] = late ? load2(first + 16) : 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = permute_bytes(words[i], words[i + 1], late ? 0x5432U : 0x3210U);
}

template <>
struct Slice<WeightType::q4_k> {
  static constexpr bool is_used = true;
  uint4 header;  // scale, min, and the 12 bytes of scales
  uint4 codes;   // of this sub-block and of one beside it
  int sub;

  __device__ static Slice load(const uint8_t* row, int slice) {
    const uint8_t* block = row + int64_t{144} * (slice / 16);
    const int sub = slice % 16 / 2;
    return {load16(block), load16(block + 16 + 32 * (sub / 2) + 16 * (slice % 2)), sub};
  }
  __device__ void decode(uint32_t (&out)[4][2]) const {
    const uint32_t scales[3] = {header.y, header.z, header.w};
    uint32_t sub_scale;
    uint32_t sub_min;
    scale_and_min(scales, sub, sub_scale, sub_min);
    const float scale = to_float(half_at(&header.x, false)) * static_cast<float>(sub_scale);
    const float min = to_float(half_at(&header.x, true)) * static_cast<float>(sub_min);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      through_floats(
          words[i] >> (4 * (sub % 2)) & 0x0f0f0f0fU, [=](float code) { return scale * code - min; }, out[i]);
    }
  }
};

template <>
struct Slice<WeightType::q6_k> {
  static constexpr bool is_used = true;
  uint32_t low[4], high[4];  // bits of this quarter and of others
  uint16_t scale;
  int8_t sub_scale;
  int quarter;

  __device__ static Slice load(const uint8_t* row, int slice) {
    const uint8_t* block = row + int64_t{210} * (slice / 16);
    const int half = slice % 16 / 8;
    Slice found;
    found.quarter = slice % 8 / 2;
    load_late(found.low, block + 64 * half + 32 * (found.quarter % 2) + 16 * (slice % 2));
    load_late(found.high, block + 128 + 32 * half + 16 * (slice % 2));
    found.sub_scale = static_cast<int8_t>(block[192 + slice % 16]);
    found.scale = load2(block + 208);
    return found;
  }
  __device__ void decode(uint32_t (&out)[4][2]) const {
    const float s = to_float(scale) * static_cast<float>(sub_scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t codes = (low[i] >> (4 * (quarter / 2)) & 0x0f0f0f0fU) | (high[i] >> (2 * quarter) & 0x03030303U) << 4;
      through_floats(
          codes, [=](float code) { return s * (code - 32.0F); }, out[i]);
    }
  }
};

template <>
struct Piece<WeightType::q4_k> : Piece<WeightType::f16> {};
template <>
struct Piece<WeightType::q6_k> : Piece<WeightType::f16> {};

}  // namespace
}  // namespace pshard
