// How a GPU kernel divides its work, and what it needs for that: a function of the shape alone, so that a caller knows the scratch before
// it knows the device.
#pragma once

#include "probe/gpu_kernels.hpp"

namespace pshard {

// What activations become before they are multiplied.
enum class GpuRounding : uint8_t { none, halves, bytes };

// Offsets into scratch, and how a product is divided.
struct ProductLayout {
  bool is_vector = false;  // rows of weights one by one, without matrix units
  GpuRounding rounding = GpuRounding::bytes;
  int64_t n_x_rows = 0;       // of activations
  int64_t tile_batch = 0;     // rows of activations of one block
  int64_t n_parts = 1;        // of the columns, summed apart
  int64_t part_columns = 0;   // of all parts but the last
  int64_t scales_offset = 0;  // activations come first
  int64_t first_offset = 0;   // experts: where their rows begin, and the order of rows
  int64_t order_offset = 0;
  int64_t parts_offset = 0;
  int64_t scratch_bytes = 0;
};
[[nodiscard]] ProductLayout layout_of(const GpuProduct& shape);
[[nodiscard]] ProductLayout layout_of(const GpuExperts& shape);

struct AttentionLayout {
  bool is_split = false;        // one query token in each block, the cache in parts; otherwise tiles of query tokens
  int64_t heads_per_block = 1;  // that read the same keys
  int64_t n_splits = 1;
  int64_t cells_per_split = 0;
  int64_t totals_offset = 0;
  int64_t scratch_bytes = 0;
};
[[nodiscard]] AttentionLayout layout_of(const AttentionShape& shape);

}  // namespace pshard
