// Quantised blocks on the GPU, as codes of 8 bits under a scale: how each type is read and decoded, for all kernels. A lane decodes runs of
// neighbouring columns; which columns share bytes decides how a row is divided into them.
#pragma once

#include "probe/blocks.hpp"
#include "probe/gpu_language.cuh"

namespace pshard {
namespace {

// weight = scale * code - min
struct Scale {
  float scale;
  float min;
};

enum class Mins : uint8_t { none, of_32, of_run };  // which columns share a min, that begin at a multiple of as many

// A row consists of groups of `parts` stripes of `stripe` columns, which lie in the same bytes: one read of 4 * words bytes holds a run of
// 4 * words columns of every stripe, from column `offset` of each on.
//   load: what the runs share
//   take: makes run `part` the one that is decoded next
//   decode: its codes, signed
template <WeightType type, int words>
struct Run;

// So many columns are a run where products are summed as weights are read: few where a read of more would take from other lanes.
constexpr int vector_words(WeightType type) {
  switch (type) {
    case WeightType::q4_0:
    case WeightType::q2_k:
    case WeightType::q3_k:
    case WeightType::q6_k:
      return 2;
    default:
      return 4;
  }
}

__device__ inline bool is_late(const uint8_t* at) { return (reinterpret_cast<uintptr_t>(at) & 2U) != 0; }

// 16 bytes at any address: the words that they lie in, and of the last no byte that is not asked for.
__device__ inline void load_anywhere(uint32_t (&out)[4], const uint8_t* from) {
  const auto late = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from) & 3U);
  const uint8_t* first = from - late;
  uint32_t words[5];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = load4(first + 4 * i);
  words[4] = 0;
#pragma unroll
  for (uint32_t i = 0; i < 3; ++i) {
    if (i < late) words[4] |= static_cast<uint32_t>(load1(first + 16 + i)) << (8 * i);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = permute_bytes(words[i], words[i + 1], 0x3210U + 0x1111U * late);
}

// The same at an even address.
__device__ inline void load_even(uint32_t (&out)[4], const uint8_t* from) {
  const bool late = is_late(from);
  const uint8_t* first = from - (late ? 2 : 0);
  uint32_t words[5];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = load4(first + 4 * i);
  words[4] = late ? load2(first + 16) : 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = permute_bytes(words[i], words[i + 1], late ? 0x5432U : 0x3210U);
}
// 8 bytes are fewest loads as halves.
__device__ inline void load_even(uint32_t (&out)[2], const uint8_t* from) { load_words(out, from); }

template <int n>
__device__ inline void load_aligned4(uint32_t (&out)[n], const uint8_t* from) {
#pragma unroll
  for (int i = 0; i < n; ++i) out[i] = load4(from + 4 * i);
}

// Bytes less `offset`, from 0 to 127 both: the borrow stays in the highest bit of the byte.
__device__ inline uint32_t less(uint32_t bytes, uint32_t offset) { return ((bytes | 0x80808080U) - 0x01010101U * offset) ^ 0x80808080U; }

// Low nibbles of a word's bytes, or high ones.
__device__ inline uint32_t nibbles(uint32_t word, int part) { return word >> (4 * part) & 0x0f0f0f0fU; }

// Bits `first` to `first` + 3 of a word, as the fifth bits of four bytes.
__device__ inline uint32_t fifth_bits(uint32_t bits, int first) { return (bits >> first & 15U) * 0x02040810U & 0x10101010U; }

__device__ inline float scale_of(const uint8_t* half) { return to_float(load2(half)); }

// 16 values of a byte each, that codes of four bits name. Four registers and byte permutations need neither set-up nor memory, where lanes
// that ask for different places would wait for each other.
struct Codebook {
  uint32_t words[4];
};
__device__ constexpr Codebook codebook_of(const int8_t (&values)[16]) {
  Codebook book{};
  for (int i = 0; i < 16; ++i) book.words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(values[i])) << (8 * (i % 4));
  return book;
}

// What the low nibbles of a word's bytes name, or the high ones.
__device__ inline uint32_t look_up(const Codebook& book, uint32_t codes, int part) {
  uint32_t found[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // four nibbles in their order: among the lower eight values, among the upper, and of both the right one
    const uint32_t four = codes >> (16 * i) & 0xffffU;
    const uint32_t lower = permute_bytes(book.words[0], book.words[1], four & 0x7777U);
    const uint32_t upper = permute_bytes(book.words[2], book.words[3], four & 0x7777U);
    found[i] = permute_bytes(lower, upper, 0x3210U | (four & 0x8888U) >> 1);
  }
  return permute_bytes(found[0], found[1], part == 0 ? 0x6420U : 0x7531U);
}

template <>
struct Run<WeightType::q8_0, 4> {
  static constexpr int stripe = 32, parts = 1;
  static constexpr Mins mins = Mins::none;
  float scale;
  uint32_t bytes[4];

  __device__ static Run load(const uint8_t* row, int group, int offset) {
    const uint8_t* block = row + int64_t{34} * group;
    Run run;
    run.scale = scale_of(block);
    load_words(run.bytes, block + 2 + offset);
    return run;
  }
  __device__ void take(int) {}
  __device__ Scale decode(uint32_t (&codes)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = bytes[i];
    return {scale, 0.0F};
  }
};

// Blocks of 32 columns in nibbles: the first 16 are the low ones.
template <int words>
struct NibbleRun {
  static constexpr int stripe = 16, parts = 2;
  static constexpr Mins mins = Mins::none;
  uint32_t bytes[words];
  int part;

  __device__ void take(int next) { part = next; }
};

template <int words>
struct Run<WeightType::q4_0, words> : NibbleRun<words> {
  static constexpr Mins mins = Mins::of_32;
  float scale;

  __device__ static Run load(const uint8_t* row, int group, int offset) {
    const uint8_t* block = row + int64_t{18} * group;
    Run run;
    run.scale = scale_of(block);
    load_even(run.bytes, block + 2 + offset);
    return run;
  }
  __device__ Scale decode(uint32_t (&codes)[words]) const {
#pragma unroll
    for (int i = 0; i < words; ++i) codes[i] = nibbles(this->bytes[i], this->part);
    return {scale, 8.0F * scale};
  }
};

template <>
struct Run<WeightType::q4_1, 4> : NibbleRun<4> {
  static constexpr Mins mins = Mins::of_32;
  uint32_t header;  // scale and least

  __device__ static Run load(const uint8_t* row, int group, int) {
    const uint8_t* block = row + int64_t{20} * group;
    Run run;
    run.header = load4(block);
    load_aligned4(run.bytes, block + 4);
    return run;
  }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = nibbles(bytes[i], part);
    return {to_float(low_half(header)), -to_float(high_half(header))};
  }
};

template <>
struct Run<WeightType::q5_0, 4> : NibbleRun<4> {
  static constexpr Mins mins = Mins::of_32;
  float scale;
  uint32_t high;

  __device__ static Run load(const uint8_t* row, int group, int) {
    const uint8_t* block = row + int64_t{22} * group;
    Run run;
    run.scale = scale_of(block);
    run.high = pack(load2(block + 2), load2(block + 4));
    load_even(run.bytes, block + 6);
    return run;
  }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = nibbles(bytes[i], part) | fifth_bits(high, 16 * part + 4 * i);
    return {scale, 16.0F * scale};
  }
};

template <>
struct Run<WeightType::q5_1, 4> : NibbleRun<4> {
  static constexpr Mins mins = Mins::of_32;
  uint32_t header;  // scale and least
  uint32_t high;

  __device__ static Run load(const uint8_t* row, int group, int) {
    const uint8_t* block = row + int64_t{24} * group;
    Run run;
    run.header = load4(block);
    run.high = load4(block + 4);
    load_aligned4(run.bytes, block + 8);
    return run;
  }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = nibbles(bytes[i], part) | fifth_bits(high, 16 * part + 4 * i);
    return {to_float(low_half(header)), -to_float(high_half(header))};
  }
};

template <>
struct Run<WeightType::iq4_nl, 4> : NibbleRun<4> {
  float scale;

  __device__ static Run load(const uint8_t* row, int group, int) {
    const uint8_t* block = row + int64_t{18} * group;
    Run run;
    run.scale = scale_of(block);
    load_even(run.bytes, block + 2);
    return run;
  }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
    constexpr Codebook book = codebook_of(kUnevenSteps);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = look_up(book, bytes[i], part);
    return {scale, 0.0F};
  }
};

template <>
struct Run<WeightType::mxfp4, 4> : NibbleRun<4> {
  uint8_t exponent;

  __device__ static Run load(const uint8_t* row, int group, int) {
    const uint8_t* block = row + int64_t{17} * group;
    Run run;
    run.exponent = load1(block);
    load_anywhere(run.bytes, block + 1);
    return run;
  }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
    constexpr Codebook book = codebook_of(kFourBitFloats);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = look_up(book, bytes[i], part);
    // 2^(exponent - 128); the two smallest are subnormal.
    return {as_float(exponent < 2 ? 0x00200000U << exponent : (exponent - 1U) << 23), 0.0F};
  }
};

template <>
struct Run<WeightType::iq4_xs, 4> : NibbleRun<4> {
  uint2 header;
  int sub;

  __device__ static Run load(const uint8_t* row, int group, int) {
    const uint8_t* block = row + int64_t{136} * (group / 8);
    Run run;
    run.header = load8(block);
    run.sub = group % 8;
    const uint2 first = load8(block + 8 + 16 * run.sub);
    const uint2 second = load8(block + 16 + 16 * run.sub);
    run.bytes[0] = first.x;
    run.bytes[1] = first.y;
    run.bytes[2] = second.x;
    run.bytes[3] = second.y;
    return run;
  }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
    constexpr Codebook book = codebook_of(kUnevenSteps);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = look_up(book, bytes[i], part);
    const uint32_t sub_scale = (header.y >> (4 * sub) & 15U) | (header.x >> (16 + 2 * sub) & 3U) << 4;
    return {to_float(low_half(header.x)) * (static_cast<float>(sub_scale) - 32.0F), 0.0F};
  }
};

// Of Q4_K and Q5_K: two F16, then scales and mins of the sub-blocks in 6 bits each.
__device__ inline Scale scale_of_sub(const uint4& header, int sub) {
  const int shift = 8 * (sub % 4);
  uint32_t scale = header.y >> shift;
  uint32_t min = header.z >> shift;
  if (sub < 4) {
    scale &= 63U;
    min &= 63U;
  } else {  // two bits above four of the last word
    const uint32_t low = header.w >> shift;
    scale = (low & 15U) | (scale >> 2 & 0x30U);
    min = (low >> 4 & 15U) | (min >> 2 & 0x30U);
  }
  return {to_float(low_half(header.x)) * static_cast<float>(scale), to_float(high_half(header.x)) * static_cast<float>(min)};
}

template <>
struct Run<WeightType::q4_k, 4> {
  static constexpr int stripe = 32, parts = 2;
  static constexpr Mins mins = Mins::of_32;
  uint4 header;
  uint4 bytes;
  int first_sub;
  int part;

  __device__ static Run load(const uint8_t* row, int group, int offset) {
    const uint8_t* block = row + int64_t{144} * (group / 4);
    const int pair = group % 4;
    return {load16(block), load16(block + 16 + 32 * pair + offset), 2 * pair, 0};
  }
  __device__ void take(int next) { part = next; }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = nibbles(words[i], part);
    return scale_of_sub(header, first_sub + part);
  }
};

template <>
struct Run<WeightType::q5_k, 4> {
  static constexpr int stripe = 32, parts = 2;
  static constexpr Mins mins = Mins::of_32;
  uint4 header;
  uint4 high;
  uint4 bytes;
  int first_sub;
  int part;

  __device__ static Run load(const uint8_t* row, int group, int offset) {
    const uint8_t* block = row + int64_t{176} * (group / 4);
    const int pair = group % 4;
    return {load16(block), load16(block + 16 + offset), load16(block + 48 + 32 * pair + offset), 2 * pair, 0};
  }
  __device__ void take(int next) { part = next; }
  __device__ Scale decode(uint32_t (&codes)[4]) const {
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
    const uint32_t fifth[4] = {high.x, high.y, high.z, high.w};
    const int sub = first_sub + part;
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = nibbles(words[i], part) | (fifth[i] >> sub & 0x01010101U) << 4;
    return scale_of_sub(header, sub);
  }
};

// Halves of a block of 256 columns, in pairs of bits: 32 bytes hold four stripes of 32 columns, with a scale for each 16 columns.
struct BitPairRun {
  static constexpr int stripe = 32, parts = 4;
  const uint8_t* block;
  int half;
  int offset;
  int part;
  __device__ int sub() const { return 8 * half + 2 * part + offset / 16; }
};

template <int words>
struct Run<WeightType::q2_k, words> : BitPairRun {
  static constexpr Mins mins = Mins::of_run;
  uint32_t bytes[words];
  uint32_t header;  // scale and min
  uint8_t sub_scale;

  __device__ static Run load(const uint8_t* row, int group, int offset) {
    Run run;
    run.block = row + int64_t{84} * (group / 2);
    run.half = group % 2;
    run.offset = offset;
    load_aligned4(run.bytes, run.block + 16 + 32 * run.half + offset);
    run.header = load4(run.block + 80);
    return run;
  }
  __device__ void take(int next) {
    part = next;
    sub_scale = load1(block + sub());
  }
  __device__ Scale decode(uint32_t (&codes)[words]) const {
#pragma unroll
    for (int i = 0; i < words; ++i) codes[i] = bytes[i] >> (2 * part) & 0x03030303U;
    return {to_float(low_half(header)) * static_cast<float>(sub_scale & 15U),
            to_float(high_half(header)) * static_cast<float>(sub_scale >> 4)};
  }
};

template <int words>
struct Run<WeightType::q3_k, words> : BitPairRun {
  static constexpr Mins mins = Mins::none;
  uint32_t low[words], high[words];
  float scale;
  uint8_t low_scale, high_scale;

  __device__ static Run load(const uint8_t* row, int group, int offset) {
    Run run;
    run.block = row + int64_t{110} * (group / 2);
    run.half = group % 2;
    run.offset = offset;
    load_even(run.low, run.block + 32 + 32 * run.half + offset);
    load_even(run.high, run.block + offset);
    run.scale = scale_of(run.block + 108);
    return run;
  }
  __device__ void take(int next) {
    part = next;
    low_scale = load1(block + 96 + sub() % 8);
    high_scale = load1(block + 104 + sub() % 4);
  }
  __device__ Scale decode(uint32_t (&codes)[words]) const {
#pragma unroll
    for (int i = 0; i < words; ++i) {
      const uint32_t third = high[i] >> (4 * half + part) & 0x01010101U;
      codes[i] = less((low[i] >> (2 * part) & 0x03030303U) | third << 2, 4);
    }
    const uint32_t sub_scale = (low_scale >> (4 * half) & 15U) | (high_scale >> (2 * (sub() / 4)) & 3U) << 4;
    return {scale * (static_cast<float>(sub_scale) - 32.0F), 0.0F};
  }
};

// 64 bytes of low bits hold stripes of 64 columns where 16 bytes are read; 8 bytes are read of either half of them.
template <int words>
struct Run<WeightType::q6_k, words> {
  static constexpr int stripe = 16 * words, parts = 8 / words;
  static constexpr Mins mins = Mins::none;
  static constexpr int n_low = parts / 2;
  const uint8_t* block;
  int half;
  int offset;
  int part;
  uint32_t low[n_low][words], high[words];
  float scale;
  int8_t sub_scale;

  __device__ int quarter() const { return n_low == 2 ? part : offset / 32 + 2 * part; }
  __device__ static Run load(const uint8_t* row, int group, int offset) {
    Run run;
    run.block = row + int64_t{210} * (group / 2);
    run.half = group % 2;
    run.offset = offset;
#pragma unroll
    for (int i = 0; i < n_low; ++i) load_even(run.low[i], run.block + 64 * run.half + 32 * i + offset);
    load_even(run.high, run.block + 128 + 32 * run.half + offset % 32);
    run.scale = scale_of(run.block + 208);
    return run;
  }
  __device__ void take(int next) {
    part = next;
    sub_scale = static_cast<int8_t>(load1(block + 192 + 8 * half + 2 * quarter() + offset % 32 / 16));
  }
  __device__ Scale decode(uint32_t (&codes)[words]) const {
#pragma unroll
    for (int i = 0; i < words; ++i) {
      const uint32_t bits = nibbles(low[n_low == 2 ? part % 2 : 0][i], quarter() / 2);
      codes[i] = less(bits | (high[i] >> (2 * quarter()) & 0x03030303U) << 4, 32);
    }
    return {scale * static_cast<float>(sub_scale), 0.0F};
  }
};

}  // namespace
}  // namespace pshard
