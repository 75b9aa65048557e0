// Products with panels: groups of V::kLanes rows, decoded so that one vector holds four columns of each of them. A panel is decoded once
// and multiplied with every row of the activations. Over a type V of vectors, as in x86_half.hpp, with V::Ints, to_floats, load_ints,
// broadcast_ints, broadcast_four and multiply_add.
#pragma once

#include "probe/x86_decode.hpp"

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
  int64_t sub = column / Format::kSubColumns;
  const int64_t first_sub = sub;
  for (int64_t block = 0; block < n_blocks; ++block) {
    typename V::Floats parts[kColumns];
    for (int c = 0; c < kColumns; ++c) parts[c] = V::zero();
    for (int s = 0; s < Format::kSubs; ++s, ++sub) {
      typename V::Ints sums[kColumns];
      for (int c = 0; c < kColumns; ++c) {
        sums[c] = V::broadcast_int(Format::kHasOffset ? x.starts[(j + c) * x.n_sub_blocks + sub] : 0);
      }
      const int8_t* from = x.codes + j * x.n_columns + sub * Format::kSubColumns;
      for (int four = 0; four < Format::kSubColumns / 4; ++four, codes += 4 * V::kLanes) {
        const typename V::Ints row_codes = V::load_ints(codes);
        for (int c = 0; c < kColumns; ++c) {
          sums[c] = V::multiply_add(sums[c], row_codes, V::broadcast_four(from + c * x.n_columns + 4 * four));
        }
      }
      const typename V::Floats scales = V::load(panel.scales + (sub - first_sub) * V::kLanes);
      for (int c = 0; c < kColumns; ++c) parts[c] = V::fma(V::to_floats(sums[c]), scales, parts[c]);
      if constexpr (Format::kHasMins) {
        const typename V::Floats mins = V::load(panel.mins + (sub - first_sub) * V::kLanes);
        for (int c = 0; c < kColumns; ++c) parts[c] = V::fma_minus(mins, V::broadcast(x.sums[(j + c) * x.n_sub_blocks + sub]), parts[c]);
      }
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
  constexpr int64_t kScales = kPanelColumns / Format::kSubColumns * V::kLanes;
  constexpr int64_t kPanelBytes = kCodeBytes + 2 * kScales * static_cast<int64_t>(sizeof(float));
  static_assert(kRowsPerCall / V::kLanes * kPanelBytes <= kScratchBytes);
  Panel panels[kRowsPerCall / V::kLanes];
  const int64_t n_panels = (n_rows + V::kLanes - 1) / V::kLanes;
  for (int64_t p = 0; p < n_panels; ++p) {
    uint8_t* at = scratch + p * kPanelBytes;
    auto* scales = reinterpret_cast<float*>(at + kCodeBytes);
    panels[p] = {at, scales, scales + kScales};
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
