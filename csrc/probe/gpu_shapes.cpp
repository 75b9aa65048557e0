#include "probe/gpu_shapes.hpp"

#include <algorithm>
#include <limits>
#include <string>

namespace pshard {
namespace {

constexpr int64_t kBlocksWanted = 256;      // about two for each multiprocessor of the largest GPUs
constexpr int64_t kLeastPartColumns = 512;  // below, summing parts costs more than it brings
constexpr int64_t kRowsOfTile = 128, kColumnsOfTile = 32;
constexpr int64_t kCellsOfBlock = 64, kLeastCellsOfSplit = 256;  // each split takes scratch of the arena
constexpr int64_t kMostExperts = 1024, kMostRows = int64_t{65535} * kRowsOfTile;

int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t rounded(int64_t n, int64_t to) { return divided(n, to) * to; }

void require(bool holds, const char* name, int64_t value, const std::string& rule) {
  if (!holds) throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", " + rule);
}

void check_matrix(WeightType type, int64_t n_rows, int64_t n_columns) {
  require(n_rows >= 1 && n_rows <= kMostRows, "n_rows", n_rows, "must be from 1 to " + std::to_string(kMostRows));
  static_cast<void>(row_bytes(type, n_columns));
  require(n_columns % kColumnsOfTile == 0, "n_columns", n_columns, "kernels take multiples of 32");
  require(n_columns <= std::numeric_limits<int32_t>::max() / 2, "n_columns", n_columns, "is too large");
}

void check_batch(int64_t batch) {
  require(batch >= 1 && batch <= kMaxGpuBatch, "batch", batch, "must be from 1 to " + std::to_string(kMaxGpuBatch));
}

int64_t tile_for(int64_t rows) { return rows <= 32 ? 32 : rows <= 64 ? 64 : 128; }

// Scratch is handed out from its beginning.
int64_t take(int64_t& scratch, int64_t n_bytes) {
  const int64_t at = scratch;
  scratch += rounded(n_bytes, 256);
  return at;
}

GpuRounding rounding_of(WeightType type, bool is_vector) {
  if (!is_vector || type == WeightType::f16) return GpuRounding::halves;
  return type == WeightType::bf16 || type == WeightType::f32 ? GpuRounding::none : GpuRounding::bytes;
}

void take_activations(ProductLayout& layout, WeightType type, int64_t n_columns) {
  layout.rounding = rounding_of(type, layout.is_vector);
  const int64_t n_values = layout.n_x_rows * n_columns;
  const int64_t value_bytes = layout.rounding == GpuRounding::none ? 0 : layout.rounding == GpuRounding::halves ? 2 : 1;
  take(layout.scratch_bytes, n_values * value_bytes);
  layout.scales_offset = take(layout.scratch_bytes, layout.rounding == GpuRounding::bytes ? n_values / 32 * 8 : 0);
}

}  // namespace

bool gpu_multiplies(WeightType /*type*/) { return true; }

void check(const GpuProduct& shape) {
  check_matrix(shape.type, shape.n_rows, shape.n_columns);
  check_batch(shape.batch);
}

int64_t weight_bytes(const GpuProduct& shape) { return shape.n_rows * row_bytes(shape.type, shape.n_columns); }

ProductLayout layout_of(const GpuProduct& shape) {
  check(shape);
  ProductLayout layout;
  layout.is_vector = shape.batch <= kVectorBatch;
  layout.n_x_rows = shape.batch;
  take_activations(layout, shape.type, shape.n_columns);
  if (layout.is_vector) return layout;
  layout.tile_batch = tile_for(shape.batch);
  const int64_t blocks = divided(shape.batch, layout.tile_batch) * divided(shape.n_rows, kRowsOfTile);
  const int64_t wanted = std::clamp<int64_t>(kBlocksWanted / blocks, 1, std::max<int64_t>(1, shape.n_columns / kLeastPartColumns));
  layout.part_columns = rounded(divided(shape.n_columns, wanted), kColumnsOfTile);
  layout.n_parts = divided(shape.n_columns, layout.part_columns);
  layout.parts_offset = take(layout.scratch_bytes, layout.n_parts > 1 ? layout.n_parts * shape.batch * shape.n_rows * 4 : 0);
  return layout;
}

int64_t scratch_bytes(const GpuProduct& shape) { return layout_of(shape).scratch_bytes; }

void check(const GpuExperts& shape) {
  check_matrix(shape.type, shape.n_rows, shape.n_columns);
  check_batch(shape.batch);
  require(shape.n_experts >= 1 && shape.n_experts <= kMostExperts, "n_experts", shape.n_experts, "must be from 1 to 1024");
  require(shape.n_used >= 1 && shape.n_used <= shape.n_experts, "n_used", shape.n_used, "must be from 1 to n_experts");
}

int64_t weight_bytes(const GpuExperts& shape) { return shape.n_experts * shape.n_rows * row_bytes(shape.type, shape.n_columns); }

ProductLayout layout_of(const GpuExperts& shape) {
  check(shape);
  ProductLayout layout;
  const int64_t n_y_rows = shape.batch * shape.n_used;
  layout.is_vector = shape.batch <= kVectorBatch;
  layout.n_x_rows = shape.has_own_rows ? n_y_rows : shape.batch;
  layout.part_columns = shape.n_columns;
  take_activations(layout, shape.type, shape.n_columns);
  if (layout.is_vector) return layout;
  layout.tile_batch = tile_for(divided(n_y_rows, shape.n_experts));
  layout.first_offset = take(layout.scratch_bytes, (shape.n_experts + 1) * 4);
  layout.order_offset = take(layout.scratch_bytes, n_y_rows * 4);
  return layout;
}

int64_t scratch_bytes(const GpuExperts& shape) { return layout_of(shape).scratch_bytes; }

void check_gpu(const AttentionShape& shape) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / 2;
  require(shape.head_size == 64 || shape.head_size == 96 || shape.head_size == 128 || shape.head_size == 192 || shape.head_size == 256,
          "head_size", shape.head_size, "there are kernels for 64, 96, 128, 192 and 256");
  require(shape.n_kv_heads >= 1, "n_kv_heads", shape.n_kv_heads, "must be positive");
  require(shape.n_heads >= 1 && shape.n_heads <= 65535 && shape.n_heads % shape.n_kv_heads == 0, "n_heads", shape.n_heads,
          "must be a positive multiple of n_kv_heads");
  check_batch(shape.batch);
  require(shape.depth >= shape.batch && shape.depth <= most, "depth", shape.depth, "must be at least the batch");
}

AttentionLayout layout_of(const AttentionShape& shape) {
  check_gpu(shape);
  AttentionLayout layout;
  layout.is_split = shape.batch <= kVectorBatch;
  if (!layout.is_split) return layout;
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  layout.heads_per_block = group % 4 == 0 ? 4 : group % 2 == 0 ? 2 : 1;
  const int64_t blocks = shape.n_heads / layout.heads_per_block * shape.batch;
  const int64_t wanted = std::clamp<int64_t>(2 * kBlocksWanted / blocks, 1, divided(shape.depth, kLeastCellsOfSplit));
  layout.cells_per_split = rounded(divided(shape.depth, wanted), kCellsOfBlock);
  layout.n_splits = divided(shape.depth, layout.cells_per_split);
  const int64_t rows = layout.n_splits * shape.batch * shape.n_heads;
  take(layout.scratch_bytes, rows * shape.head_size * 4);
  layout.totals_offset = take(layout.scratch_bytes, rows * 8);
  return layout;
}

int64_t gpu_scratch_bytes(const AttentionShape& shape) { return layout_of(shape).scratch_bytes; }

}  // namespace pshard
