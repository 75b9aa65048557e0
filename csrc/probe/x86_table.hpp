// The kernels of one instruction set, made of what the headers before hold. Rows are interleaved by eight, as llama.cpp does for either.
#pragma once

#include "probe/softmax_row.hpp"
#include "probe/x86_attend.hpp"
#include "probe/x86_eight.hpp"
#include "probe/x86_half.hpp"
#include "probe/x86_panels.hpp"
#include "probe/x86_peak.hpp"
#include "probe/x86_rows.hpp"
#include "probe/x86_scan.hpp"

namespace pshard {
namespace {

constexpr int64_t kPanelsFrom = 8;  // rows of activations; as llama.cpp's ggml-cpu/tiled

template <typename V, typename Block, typename Format>
void multiply_plain(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                    int64_t out_stride, uint8_t* scratch) {
  if (last - first < kPanelsFrom) {
    multiply_dots<Block>(weights, n_rows, x, first, last, out, out_stride);
  } else {
    multiply_panels<V, Format>(weights, n_rows, x, first, last, out, out_stride, scratch);
  }
}

template <typename V, typename Block, typename Format>
void multiply_groups(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                     int64_t out_stride, uint8_t* scratch) {
  if (last - first == 1) {
    multiply_interleaved<V, Block>(weights, n_rows, x, first, out, out_stride);
    return;
  }
  for (int64_t j = first; j < last; j += Format::kRowsPerDecoding) {
    const int64_t end = last - j < Format::kRowsPerDecoding ? last : j + Format::kRowsPerDecoding;
    multiply_panels<V, Format>(weights, n_rows, x, j, end, out, out_stride, scratch);
  }
}

template <typename V>
constexpr Kernels table_of(uint64_t (*sum)(const uint64_t*, int64_t)) {
  return {
      V::kLanes,
      sum,
      spin_bytes<V>,
      spin_floats<V>,
      {
          {multiply_halves<V>, nullptr},
          {multiply_blocks<BlockQ8_0, V::kTileRows, V::kTileColumns>, nullptr},
          {multiply_blocks<BlockQ4_0, V::kTileRows, V::kTileColumns>, multiply_groups<Eight, BlockQ4_0, InterleavedQ4_0>},
          {multiply_plain<V, BlockQ4_K, PlainQ4_K>, multiply_groups<Eight, BlockQ4_K, InterleavedQ4_K>},
          {multiply_plain<V, BlockQ6_K, PlainQ6_K>, nullptr},
      },
      half_products<V>,
      exp_row,
      half_mix<V>,
      half_attend<V>,
      decay_rows<V>,
      delta_rows<V>,
  };
}

}  // namespace
}  // namespace pshard
