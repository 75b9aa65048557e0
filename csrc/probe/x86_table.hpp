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

template <typename V, typename Block>
void multiply_plain(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                    int64_t out_stride, uint8_t* scratch) {
  if (last - first < kPanelsFrom) {
    multiply_dots<Block>(weights, n_rows, x, first, last, out, out_stride);
  } else {
    multiply_panels<V, PlainBlocks<Block>>(weights, n_rows, x, first, last, out, out_stride, scratch);
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
constexpr MultiplyTable multiply_table() {
  MultiplyTable table;
  table.of(WeightType::f32) = multiply_numbers<V, float>;
  table.of(WeightType::f16) = multiply_numbers<V, Half>;
  table.of(WeightType::bf16) = multiply_numbers<V, BFloat>;
  table.of(WeightType::q8_0) = multiply_blocks<BlockQ8_0, V::kTileRows, V::kTileColumns>;
  table.of(WeightType::q4_0) = multiply_blocks<BlockQ4_0, V::kTileRows, V::kTileColumns>;
  table.of(WeightType::q5_0) = multiply_blocks<BlockQ5_0, V::kTileRows, V::kTileColumns>;
  table.of(WeightType::iq4_nl) = multiply_blocks<BlockIQ4_NL, V::kTileRows, V::kTileColumns>;
  table.of(WeightType::q4_1) = multiply_by_rows<BlockQ4_1>;
  table.of(WeightType::q5_1) = multiply_by_rows<BlockQ5_1>;
  table.of(WeightType::mxfp4) = multiply_by_rows<BlockMXFP4>;
  table.of(WeightType::q2_k) = multiply_plain<V, BlockQ2_K>;
  table.of(WeightType::q3_k) = multiply_plain<V, BlockQ3_K>;
  table.of(WeightType::q4_k) = multiply_plain<V, BlockQ4_K>;
  table.of(WeightType::q5_k) = multiply_plain<V, BlockQ5_K>;
  table.of(WeightType::q6_k) = multiply_plain<V, BlockQ6_K>;
  table.of(WeightType::iq4_xs) = multiply_plain<V, BlockIQ4_XS>;
  table.of(WeightType::q4_0, Layout::interleaved) = multiply_groups<Eight, BlockQ4_0, InterleavedSteps<BlockQ4_0>>;
  table.of(WeightType::iq4_nl, Layout::interleaved) = multiply_groups<Eight, BlockIQ4_NL, InterleavedSteps<BlockIQ4_NL>>;
  table.of(WeightType::mxfp4, Layout::interleaved) = multiply_groups<Eight, BlockMXFP4, InterleavedSteps<BlockMXFP4>>;
  table.of(WeightType::q4_k, Layout::interleaved) = multiply_groups<Eight, BlockQ4_K, InterleavedQ4_K>;
  return table;
}

template <typename V>
constexpr Kernels table_of(uint64_t (*sum)(const uint64_t*, int64_t)) {
  return {
      V::kLanes,
      sum,
      spin_bytes<V>,
      spin_floats<V>,
      multiply_table<V>(),
      half_products<V>,
      exp_row,
      half_mix<V>,
      dot_table(dot_halves<V>, dot_blocks<BlockQ8_0>, dot_blocks<BlockQ4_0>),
      attend<V>,
      decay_rows<V>,
      delta_rows<V>,
  };
}

}  // namespace
}  // namespace pshard
