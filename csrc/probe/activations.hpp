// Rows of activations as CPU kernels multiply them: rounded as `WeightFormat::rounding` says. After llama.cpp's blocks q8_0 and q8_K, with
// scales and sums in arrays of their own.
#pragma once

#include <cstdint>

#include "probe/blocks.hpp"
#include "probe/memory.hpp"

namespace pshard {

struct Activations {
  Activations(WeightType type, int64_t n_rows, int64_t n_columns, Layout layout = Layout::plain);

  WeightType type;
  int64_t n_rows;
  int64_t n_columns;
  int64_t n_scales;      // per row
  int64_t n_sub_blocks;  // per row
  int8_t* codes;         // [n_rows][n_columns]
  float* scales;         // [n_rows][n_scales]
  float* sums;           // [n_rows][n_sub_blocks], of the codes under one scale of the weights
  int32_t* starts;       // [n_rows][n_sub_blocks], minus offset times sum: where a sum of products with stored codes starts
  uint16_t* halves;      // [n_rows][n_columns], in F16 or BF16, only for weights of the same type
  float* floats;         // [n_rows][n_columns], only for F32

  // Rounds one row. Values are finite. As in llama.cpp, blocks of 256 columns are looked through one by one, unless weights are
  // interleaved.
  void quantise(int64_t row, const float* values);

  // Copies a rounded row of another batch of the same type and length.
  void take_row(int64_t row, const Activations& other, int64_t other_row);

  // What a kernel multiplies with in place of the value that was given.
  [[nodiscard]] double value(int64_t row, int64_t column) const;

 private:
  bool in_lanes_;
  Buffer storage_;
};

}  // namespace pshard
