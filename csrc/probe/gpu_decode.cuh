// Quantised blocks on the GPU, multiplied directly with activations of 8 bits. A lane works on one slice of a row at a time; slices are
// numbered along the row.
#pragma once

#include "probe/blocks.hpp"
#include "probe/gpu_language.cuh"

namespace pshard {
namespace {

constexpr int kRoundedColumns = 32;  // of activations under one scale

// Activations as kernels multiply them: 8-bit codes, of each kRoundedColumns of a row the scale, and the scale times the sum of the codes;
// or halves.
struct Rounded {
  const int8_t* codes;     // [batch][n_columns]
  const float2* scales;    // [batch][n_columns / kRoundedColumns]
  const uint16_t* halves;  // [batch][n_columns]
};

__device__ inline uint32_t byte_of(const uint32_t* words, int index) { return words[index / 4] >> (8 * (index % 4)) & 0xffU; }

// The scale and min of sub-block `index` of Q4_K, of which `words` hold the 12 bytes.
__device__ inline void scale_and_min(const uint32_t (&words)[3], int index, uint32_t& scale, uint32_t& min) {
  if (index < 4) {
    scale = byte_of(words, index) & 63U;
    min = byte_of(words, index + 4) & 63U;
  } else {
    const uint32_t low = byte_of(words, index + 4);
    scale = (low & 15U) | byte_of(words, index - 4) >> 6 << 4;
    min = low >> 4 | byte_of(words, index) >> 6 << 4;
  }
}

// Products of one slice of a row of weights with the same columns of `n` rows of activations, added to `sums`. The rows follow each other,
// `from` is where the first begins. Here slices are as long as reads of the type make them.
template <WeightType type>
struct Dot;

template <>
struct Dot<WeightType::f16> {
  static constexpr int columns = 8;

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    const uint4 w = load16(row + int64_t{16} * slice);
    const uint32_t weights[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const uint4 v = load16(x.halves + from + int64_t{j} * n_columns + columns * slice);
      const uint32_t values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[j] += to_float(static_cast<uint16_t>(weights[i] & 0xffffU)) * to_float(static_cast<uint16_t>(values[i] & 0xffffU));
        sums[j] += to_float(static_cast<uint16_t>(weights[i] >> 16)) * to_float(static_cast<uint16_t>(values[i] >> 16));
      }
    }
  }
};

template <>
struct Dot<WeightType::q8_0> {
  static constexpr int columns = 16;  // half a block

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    const uint8_t* block = row + int64_t{34} * (slice / 2);
    const float scale = to_float(load2(block));
    uint32_t weights[4];
    load_words(weights, block + 2 + 16 * (slice % 2));
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const uint4 v = load16(x.codes + from + int64_t{j} * n_columns + columns * slice);
      const int dot = dot4(weights[0], v.x, dot4(weights[1], v.y, dot4(weights[2], v.z, dot4(weights[3], v.w, 0))));
      sums[j] += scale * x.scales[(from + int64_t{j} * n_columns + columns * slice) / kRoundedColumns].x * static_cast<float>(dot);
    }
  }
};

template <>
struct Dot<WeightType::q4_0> {
  static constexpr int columns = 16;  // 8 of each half of a block

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    const uint8_t* block = row + int64_t{18} * (slice / 2);
    const float scale = to_float(load2(block));
    uint32_t weights[2];
    load_words(weights, block + 2 + 8 * (slice % 2));
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const int64_t first = from + int64_t{j} * n_columns + 32 * (slice / 2) + 8 * (slice % 2);
      const uint2 low = load8(x.codes + first);
      const uint2 high = load8(x.codes + first + 16);
      int dot = dot4(weights[0] & 0x0f0f0f0fU, low.x, dot4(weights[1] & 0x0f0f0f0fU, low.y, 0));
      dot = dot4(weights[0] >> 4 & 0x0f0f0f0fU, high.x, dot4(weights[1] >> 4 & 0x0f0f0f0fU, high.y, dot));
      const float2 rounded = x.scales[first / kRoundedColumns];
      sums[j] += scale * (rounded.x * static_cast<float>(dot) - 4.0F * rounded.y);  // either lane of a block takes half of 8 times the sum
    }
  }
};

template <>
struct Dot<WeightType::q4_k> {
  static constexpr int columns = 32;  // 16 of each of two sub-blocks

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    const uint8_t* block = row + int64_t{144} * (slice / 8);
    const int piece = slice % 8;
    const uint4 header = load16(block);
    const uint4 codes = load16(block + 16 + 16 * piece);
    const uint32_t weights[4] = {codes.x, codes.y, codes.z, codes.w};
    const uint32_t scales[3] = {header.y, header.z, header.w};
    const float scale = to_float(static_cast<uint16_t>(header.x & 0xffffU));
    const float min = to_float(static_cast<uint16_t>(header.x >> 16));
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int sub = piece / 2 * 2 + part;
      uint32_t sub_scale;
      uint32_t sub_min;
      scale_and_min(scales, sub, sub_scale, sub_min);
      const float s = scale * static_cast<float>(sub_scale);
      const float m = 0.5F * min * static_cast<float>(sub_min);  // either lane of a sub-block takes half of its sum
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const int64_t first = from + int64_t{j} * n_columns + 256 * (slice / 8) + 32 * sub + 16 * (piece % 2);
        const uint4 v = load16(x.codes + first);
        const uint32_t values[4] = {v.x, v.y, v.z, v.w};
        int dot = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) dot = dot4(weights[i] >> (4 * part) & 0x0f0f0f0fU, values[i], dot);
        const float2 rounded = x.scales[first / kRoundedColumns];
        sums[j] += s * rounded.x * static_cast<float>(dot) - m * rounded.y;
      }
    }
  }
};

template <>
struct Dot<WeightType::q6_k> {
  static constexpr int columns = 32;  // 8 of each quarter of half a block

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    const uint8_t* block = row + int64_t{210} * (slice / 8);
    const int half = slice % 8 / 4;
    const int piece = slice % 4;
    uint32_t low[2][2];
    uint32_t high[2];
    load_words(low[0], block + 64 * half + 8 * piece);
    load_words(low[1], block + 64 * half + 32 + 8 * piece);
    load_words(high, block + 128 + 32 * half + 8 * piece);
    const float scale = to_float(load2(block + 208));
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      uint32_t weights[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t low_bits = low[quarter % 2][i] >> (quarter / 2 * 4) & 0x0f0f0f0fU;
        const uint32_t code = low_bits | (high[i] >> (2 * quarter) & 0x03030303U) << 4;
        // 32 less in each byte: the borrow stays in the byte's highest bit.
        weights[i] = ((code | 0x80808080U) - 0x20202020U) ^ 0x80808080U;
      }
      const float s = scale * static_cast<float>(static_cast<int8_t>(block[192 + 8 * half + 2 * quarter + piece / 2]));
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const int64_t first = from + int64_t{j} * n_columns + 256 * (slice / 8) + 128 * half + 32 * quarter + 8 * piece;
        const uint2 v = load8(x.codes + first);
        const int dot = dot4(weights[0], v.x, dot4(weights[1], v.y, 0));
        sums[j] += s * x.scales[first / kRoundedColumns].x * static_cast<float>(dot);
      }
    }
  }
};

}  // namespace
}  // namespace pshard
