// Kernels in the order that makes an operation, put on a queue that launches them. gpu_kernels.cu has the queue of a CUDA stream.
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include "probe/gpu_attention.cuh"
#include "probe/gpu_shapes.hpp"
#include "probe/gpu_tiles.cuh"
#include "probe/gpu_vectors.cuh"

namespace pshard {
namespace {

struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};

constexpr int kPlainThreads = 256;

inline Grid grid_over(int64_t n_values) { return {(n_values + kPlainThreads - 1) / kPlainThreads}; }

template <typename T>
T* at(void* scratch, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<uint8_t*>(scratch) + offset);
}

// Calls `use` with the type as a constant.
template <typename Use, std::size_t... types>
void with_type(WeightType type, Use use, std::index_sequence<types...> /*all*/) {
  const auto one = [&](auto same) {
    if (same() == type) use(same);
  };
  (one(std::integral_constant<WeightType, static_cast<WeightType>(types)>()), ...);
}
template <typename Use>
void with_type(WeightType type, Use use) {
  with_type(type, use, std::make_index_sequence<kWeightTypes>());
}

template <typename Queue>
Rounded queue_rounding(Queue& queue, const ProductLayout& layout, int64_t n_columns, const float* x, void* scratch) {
  const int64_t n_values = layout.n_x_rows * n_columns;
  if (layout.rounding == GpuRounding::none) return {nullptr, nullptr, nullptr, x};
  if (layout.rounding == GpuRounding::halves) {
    queue.launch("round_to_halves", layout.is_vector ? round_to_halves : round_to_tile_halves, grid_over(n_values), kPlainThreads, x,
                 n_values, at<uint16_t>(scratch, 0));
    return {nullptr, nullptr, at<uint16_t>(scratch, 0), nullptr};
  }
  auto* codes = at<int8_t>(scratch, 0);
  auto* scales = at<float2>(scratch, layout.scales_offset);
  queue.launch("round_to_bytes", round_to_bytes, grid_over(n_values), kPlainThreads, x, n_values, codes, scales);
  return {codes, scales, nullptr, nullptr};
}

// One row of weights in each block, for the first n rows of activations.
template <WeightType type, int n, typename Queue, typename... Arguments>
void queue_vector(Queue& queue, int64_t batch, Grid grid, Arguments... arguments) {
  if (batch == n) {
    queue.launch("vector_product", vector_product<type, n>, grid, kVectorWarps * kWarp, arguments...);
  } else if constexpr (n < kVectorBatch) {
    queue_vector<type, n + 1>(queue, batch, grid, arguments...);
  }
}

template <WeightType type, typename Queue>
void queue_tiles(Queue& queue, int64_t tile_batch, int64_t n_x_rows, int64_t z, const TileArguments& arguments) {
  const Grid grid{(n_x_rows + tile_batch - 1) / tile_batch, (arguments.n_rows + kTileRows - 1) / kTileRows, z};
  const auto launch = [&](auto kernel) { queue.launch("tile_product", kernel, grid, kTileThreads, arguments); };
  if (tile_batch == 32) return launch(tile_product<type, 32>);
  if (tile_batch == 64) return launch(tile_product<type, 64>);
  launch(tile_product<type, 128>);
}

template <typename Queue>
void queue_product(Queue& queue, const GpuProduct& shape, const void* weights, const float* x, float* y, void* scratch) {
  const ProductLayout layout = layout_of(shape);
  const Rounded rounded = queue_rounding(queue, layout, shape.n_columns, x, scratch);
  const auto* bytes = static_cast<const uint8_t*>(weights);
  const int n_rows = static_cast<int>(shape.n_rows);
  const int n_columns = static_cast<int>(shape.n_columns);
  const int64_t stride = row_bytes(shape.type, shape.n_columns);
  with_type(shape.type, [&](auto type) {
    if (layout.is_vector) {
      return queue_vector<type(), 1>(queue, shape.batch, Grid{shape.n_rows}, bytes, rounded, Routing{}, y, n_rows, n_columns, stride);
    }
    float* sums = layout.n_parts > 1 ? at<float>(scratch, layout.parts_offset) : y;
    const TileArguments arguments{bytes,
                                  rounded.halves,
                                  sums,
                                  Routing{},
                                  stride,
                                  n_rows,
                                  n_columns,
                                  static_cast<int>(shape.batch),
                                  static_cast<int>(layout.part_columns)};
    queue_tiles<type()>(queue, layout.tile_batch, shape.batch, layout.n_parts, arguments);
    if (layout.n_parts == 1) return;
    const int64_t n_values = shape.batch * shape.n_rows;
    queue.launch("sum_parts", sum_parts, grid_over(n_values), kPlainThreads, sums, static_cast<int>(layout.n_parts), n_values, y);
  });
}

template <typename Queue>
void queue_experts(Queue& queue, const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y,
                   void* scratch) {
  const ProductLayout layout = layout_of(shape);
  const Rounded rounded = queue_rounding(queue, layout, shape.n_columns, x, scratch);
  const auto* bytes = static_cast<const uint8_t*>(weights);
  const int n_rows = static_cast<int>(shape.n_rows);
  const int n_columns = static_cast<int>(shape.n_columns);
  const int n_y_rows = static_cast<int>(shape.batch * shape.n_used);
  const int64_t stride = row_bytes(shape.type, shape.n_columns);
  Routing routing{ids, nullptr, nullptr, stride * shape.n_rows, shape.has_own_rows ? 1 : static_cast<int>(shape.n_used)};
  with_type(shape.type, [&](auto type) {
    if (layout.is_vector) {
      queue.launch("vector_product", vector_product<type(), 1>, Grid{shape.n_rows, n_y_rows}, kVectorWarps * kWarp, bytes, rounded, routing,
                   y, n_rows, n_columns, stride);
      return;
    }
    auto* first = at<int32_t>(scratch, layout.first_offset);
    auto* order = at<int32_t>(scratch, layout.order_offset);
    queue.launch("group_by_expert", group_by_expert, Grid{}, kMaxExperts, ids, n_y_rows, static_cast<int>(shape.n_experts), first, order);
    routing.first = first;
    routing.order = order;
    const TileArguments arguments{bytes, rounded.halves, y, routing, stride, n_rows, n_columns, n_y_rows, n_columns};
    queue_tiles<type()>(queue, layout.tile_batch, shape.batch, shape.n_experts, arguments);  // an expert has at most `batch` rows
  });
}

template <int head, typename Queue>
void queue_attention_of(Queue& queue, const AttentionLayout& layout, const AttentionArguments& arguments) {
  const int64_t heads = arguments.n_heads;
  if (!layout.is_split) {
    const Grid grid{(arguments.batch + kQueryTile - 1) / kQueryTile, heads};
    return queue.launch("attend_tile", attend_tile<head>, grid, kAttentionThreads, arguments);
  }
  const Grid grid{heads / layout.heads_per_block, layout.n_splits, arguments.batch};
  const auto launch = [&](auto kernel) { queue.launch("attend_split", kernel, grid, kAttentionThreads, arguments); };
  if (layout.heads_per_block == 4) {
    launch(attend_split<head, 4>);
  } else if (layout.heads_per_block == 2) {
    launch(attend_split<head, 2>);
  } else {
    launch(attend_split<head, 1>);
  }
  queue.launch("join_splits", join_splits, Grid{heads, arguments.batch}, head, arguments, head);
}

template <typename Queue>
void queue_attention(Queue& queue, const AttentionShape& shape, bool is_causal, const float* queries, const void* keys, const void* values,
                     float* out, void* scratch) {
  const AttentionLayout layout = layout_of(shape);
  AttentionArguments arguments{};
  arguments.queries = queries;
  arguments.keys = static_cast<const uint16_t*>(keys);
  arguments.values = static_cast<const uint16_t*>(values);
  arguments.out = out;
  arguments.sums = at<float>(scratch, 0);
  arguments.totals = at<float2>(scratch, layout.totals_offset);
  arguments.batch = static_cast<int>(shape.batch);
  arguments.depth = static_cast<int>(shape.depth);
  arguments.n_heads = static_cast<int>(shape.n_heads);
  arguments.n_kv_heads = static_cast<int>(shape.n_kv_heads);
  arguments.is_causal = is_causal;
  arguments.n_splits = static_cast<int>(layout.n_splits);
  arguments.cells_per_split = static_cast<int>(layout.cells_per_split);
  arguments.scale = kLog2E / std::sqrt(static_cast<float>(shape.head_size));
  switch (shape.head_size) {
    case 64:
      return queue_attention_of<64>(queue, layout, arguments);
    case 96:
      return queue_attention_of<96>(queue, layout, arguments);
    case 128:
      return queue_attention_of<128>(queue, layout, arguments);
    case 192:
      return queue_attention_of<192>(queue, layout, arguments);
    default:
      return queue_attention_of<256>(queue, layout, arguments);
  }
}

}  // namespace
}  // namespace pshard
