// Products with panels: groups of V::kLanes rows, decoded so that one vector holds four columns of each of them. A panel is decoded once
// and multiplied with every row of the activations. The scales of sub-blocks multiply as integers and those of blocks once, as in
// llama.cpp's ggml-cpu/tiled. Over a type V of vectors, as in x86_half.hpp, with V::Ints and their operations.
#pragma once

#include "probe/x86_decode_groups.hpp"

namespace pshard {
namespace {

constexpr int64_t kPanelColumns = 1024;  // a panel of 64 rows lies in the second-level cache, the activations beside it in the first

template <typename V, typename Format, int kColumns>
inline void multiply_panel(const Panel& panel, int64_t n_blocks, const Activations& x, int64_t j, int64_t column, float* out,
                           int64_t out_stride, int64_t n_rows) {
  typename V::Floats totals[kColumns];
  alignas(64) float edge[V::kLanes];
  const bool is_whole = n_rows >= V::kLanes;
  for (int c = 0; c < kColumns; ++c) {
    totals[c] = V::zero();
    if (column == 0) continue;
    const float* before = out + c * out_stride;
    if (!is_whole) {
      for (int64_t row = 0; row < V::kLanes; ++row) edge[row] = row < n_rows ? before[row] : 0.0F;
      before = edge;
    }
    totals[c] = V::load(before);
  }
  const uint8_t* codes = panel.codes;
  const int64_t first_sub = column / Format::kSubColumns;
  for (int64_t block = 0; block < n_blocks; ++block) {
    const int64_t first = block * Format::kSubs;  // sub-block, of the panel
    typename V::Ints sums[kColumns];
    for (int c = 0; c < kColumns; ++c) sums[c] = V::broadcast_int(0);
    for (int64_t sub = first; sub < first + Format::kSubs; ++sub) {
      typename V::Ints part[kColumns];
      for (int c = 0; c < kColumns; ++c) {
        part[c] = V::broadcast_int(Format::kHasOffset ? x.starts[(j + c) * x.n_sub_blocks + first_sub + sub] : 0);
      }
      const int8_t* from = x.codes + j * x.n_columns + (first_sub + sub) * Format::kSubColumns;
      for (int four = 0; four < Format::kSubColumns / 4; ++four, codes += 4 * V::kLanes) {
        const typename V::Ints row_codes = V::load_ints(codes);
        for (int c = 0; c < kColumns; ++c) {
          const typename V::Ints at_c = V::broadcast_four(from + c * x.n_columns + 4 * four);
          part[c] = Format::template multiply<V>(part[c], row_codes, at_c);
        }
      }
      if constexpr (Format::kSubs == 1) {
        for (int c = 0; c < kColumns; ++c) sums[c] = part[c];
      } else {
        const typename V::Ints scales = V::load_ints(panel.sub_scales + sub * V::kLanes);
        for (int c = 0; c < kColumns; ++c) sums[c] = V::add_ints(sums[c], Format::template scale<V>(part[c], scales));
      }
    }
    typename V::Floats parts[kColumns];
    const typename V::Floats scales = V::load(panel.scales + block * V::kLanes);
    for (int c = 0; c < kColumns; ++c) parts[c] = V::mul(V::to_floats(sums[c]), scales);
    if constexpr (Format::kHasMins) {
      for (int c = 0; c < kColumns; ++c) sums[c] = V::broadcast_int(0);
      for (int64_t sub = first; sub < first + Format::kSubs; ++sub) {
        const typename V::Ints mins = V::load_ints(panel.sub_mins + sub * V::kLanes);
        for (int c = 0; c < kColumns; ++c) {
          const typename V::Ints codes_sum = V::to_ints(V::broadcast(x.sums[(j + c) * x.n_sub_blocks + first_sub + sub]));
          sums[c] = V::add_ints(sums[c], V::mul_ints(mins, codes_sum));
        }
      }
      const typename V::Floats mins = V::load(panel.mins + block * V::kLanes);
      for (int c = 0; c < kColumns; ++c) parts[c] = V::fma_minus(V::to_floats(sums[c]), mins, parts[c]);
    }
    const int64_t scale = column / Format::kColumns + block;
    for (int c = 0; c < kColumns; ++c) totals[c] = V::fma(parts[c], V::broadcast(x.scales[(j + c) * x.n_scales + scale]), totals[c]);
  }
  for (int c = 0; c < kColumns; ++c) {
    if (is_whole) {
      V::store(out + c * out_stride, totals[c]);
      continue;
    }
    V::store(edge, totals[c]);
    for (int64_t row = 0; row < n_rows; ++row) out[c * out_stride + row] = edge[row];
  }
}

// Rows of activations by kColumns at a time, then the rest by half as many, down to one.
template <typename V, typename Format, int kColumns>
inline void multiply_panels_by(const Panel* panels, int64_t n_rows, int64_t n_blocks, const Activations& x, int64_t j, int64_t last,
                               int64_t column, float* out, int64_t out_stride) {
  for (; j + kColumns <= last; j += kColumns) {
    for (int64_t row = 0; row < n_rows; row += V::kLanes) {
      multiply_panel<V, Format, kColumns>(panels[row / V::kLanes], n_blocks, x, j, column, out + j * out_stride + row, out_stride,
                                          n_rows - row);
    }
  }
  if constexpr (kColumns > 1) multiply_panels_by<V, Format, kColumns / 2>(panels, n_rows, n_blocks, x, j, last, column, out, out_stride);
}

template <typename V, typename Format>
void multiply_panels(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                     int64_t out_stride, uint8_t* scratch) {
  constexpr int64_t kCodeBytes = kPanelColumns * V::kLanes;
  constexpr int64_t kSubScales = kPanelColumns / Format::kSubColumns * V::kLanes;
  constexpr int64_t kScales = kPanelColumns / Format::kColumns * V::kLanes;
  constexpr int64_t kPanelBytes = kCodeBytes + 2 * (kSubScales + kScales) * static_cast<int64_t>(sizeof(float));
  static_assert(kRowsPerCall / V::kLanes * kPanelBytes <= kScratchBytes);
  Panel panels[kRowsPerCall / V::kLanes];
  const int64_t n_panels = (n_rows + V::kLanes - 1) / V::kLanes;
  for (int64_t p = 0; p < n_panels; ++p) {
    uint8_t* at = scratch + p * kPanelBytes;
    auto* sub_scales = reinterpret_cast<int32_t*>(at + kCodeBytes);
    auto* scales = reinterpret_cast<float*>(sub_scales + 2 * kSubScales);
    panels[p] = {at, sub_scales, sub_scales + kSubScales, scales, scales + kScales};
  }
  const int64_t row_blocks = x.n_columns / Format::kColumns;
  for (int64_t column = 0; column < x.n_columns; column += kPanelColumns) {
    const int64_t block = column / Format::kColumns;
    const int64_t left = row_blocks - block;
    const int64_t n_blocks = left < kPanelColumns / Format::kColumns ? left : kPanelColumns / Format::kColumns;
    for (int64_t p = 0; p < n_panels; ++p) {
      const int64_t rows_left = n_rows - p * V::kLanes;
      Format::template decode<V>(weights, row_blocks, p * V::kLanes, rows_left < V::kLanes ? rows_left : V::kLanes, block, n_blocks,
                                 panels[p]);
    }
    multiply_panels_by<V, Format, V::kPanelRows>(panels, n_rows, n_blocks, x, first, last, column, out, out_stride);
  }
}

}  // namespace
}  // namespace pshard
