// Products of rows of weights with few rows of activations, as the weights are read. A lane works on one slice of a row at a time; slices
// are numbered along the row.
#pragma once

#include "probe/gpu_decode.cuh"

namespace pshard {
namespace {

constexpr int kRoundedColumns = 32;  // of activations under one scale

// Activations as kernels multiply them: 8-bit codes, of each kRoundedColumns of a row the scale, and the scale times the sum of the codes;
// or halves; or as they are given.
struct Rounded {
  const int8_t* codes;     // [batch][n_columns]
  const float2* scales;    // [batch][n_columns / kRoundedColumns]
  const uint16_t* halves;  // [batch][n_columns]
  const float* floats;     // [batch][n_columns]
};

__device__ inline void load_codes(uint32_t (&out)[4], const int8_t* from) {
  const uint4 v = load16(from);
  out[0] = v.x;
  out[1] = v.y;
  out[2] = v.z;
  out[3] = v.w;
}
__device__ inline void load_codes(uint32_t (&out)[2], const int8_t* from) {
  const uint2 v = load8(from);
  out[0] = v.x;
  out[1] = v.y;
}

// Products of one slice of a row of weights with the same columns of `n` rows of activations, added to `sums`. The rows follow each other,
// `from` is where the first begins. Here a slice is what a run's read holds.
template <WeightType type>
struct Dot {
  static constexpr int words = vector_words(type);
  using Of = Run<type, words>;
  static constexpr int columns = 4 * words * Of::parts;
  static constexpr bool has_one_scale = Of::stripe * Of::parts == kRoundedColumns;  // for all runs, as activations have
  static constexpr float share = (has_one_scale ? columns : 4 * words) / static_cast<float>(kRoundedColumns);  // of a min of 32

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    constexpr int reads = Of::stripe / (4 * words);
    const int group = slice / reads;
    const int offset = slice % reads * (4 * words);
    Of run = Of::load(row, group, offset);
    int dots[n] = {};
#pragma unroll
    for (int part = 0; part < Of::parts; ++part) {
      run.take(part);
      uint32_t codes[words];
      const Scale by = run.decode(codes);
      const bool is_summed = has_one_scale && part + 1 < Of::parts;  // with the next
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const int64_t first = from + int64_t{j} * n_columns + group * (Of::stripe * Of::parts) + Of::stripe * part + offset;
        uint32_t values[words];
        load_codes(values, x.codes + first);
#pragma unroll
        for (int i = 0; i < words; ++i) dots[j] = dot4(codes[i], values[i], dots[j]);
        if (is_summed) continue;
        const float2 rounded = x.scales[first / kRoundedColumns];
        sums[j] += by.scale * rounded.x * static_cast<float>(dots[j]);
        if (Of::mins == Mins::of_32) sums[j] -= share * by.min * rounded.y;
        if (Of::mins == Mins::of_run) {
          int sum = 0;
#pragma unroll
          for (int i = 0; i < words; ++i) sum = dot4(0x01010101U, values[i], sum);
          sums[j] -= by.min * rounded.x * static_cast<float>(sum);
        }
        dots[j] = 0;
      }
    }
  }
};

// Of numbers: so many as 16 bytes hold.
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
        sums[j] += to_float(low_half(weights[i])) * to_float(low_half(values[i]));
        sums[j] += to_float(high_half(weights[i])) * to_float(high_half(values[i]));
      }
    }
  }
};

// sum += a . b
__device__ inline void add_dot(float& sum, const float (&a)[4], const float* b) {
  const uint4 v = load16(b);
  sum += a[0] * as_float(v.x) + a[1] * as_float(v.y) + a[2] * as_float(v.z) + a[3] * as_float(v.w);
}

template <>
struct Dot<WeightType::bf16> {
  static constexpr int columns = 8;

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    const uint4 w = load16(row + int64_t{16} * slice);
    const float first[4] = {lower_bfloat(w.x), upper_bfloat(w.x), lower_bfloat(w.y), upper_bfloat(w.y)};
    const float second[4] = {lower_bfloat(w.z), upper_bfloat(w.z), lower_bfloat(w.w), upper_bfloat(w.w)};
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float* values = x.floats + from + int64_t{j} * n_columns + columns * slice;
      add_dot(sums[j], first, values);
      add_dot(sums[j], second, values + 4);
    }
  }
};

template <>
struct Dot<WeightType::f32> {
  static constexpr int columns = 4;

  template <int n>
  __device__ static void add(const uint8_t* row, int slice, const Rounded& x, int64_t from, int n_columns, float (&sums)[n]) {
    const uint4 w = load16(row + int64_t{16} * slice);
    const float weights[4] = {as_float(w.x), as_float(w.y), as_float(w.z), as_float(w.w)};
#pragma unroll
    for (int j = 0; j < n; ++j) add_dot(sums[j], weights, x.floats + from + int64_t{j} * n_columns + columns * slice);
  }
};

}  // namespace
}  // namespace pshard
