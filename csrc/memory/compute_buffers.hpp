// Compute buffers of a placement. A block's peak depends on its class, its pattern and little of its neighbours, so it is worked out once
// per such combination; a placement then costs a few operations per layer and no allocation.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/liveness.hpp"
#include "memory/memory.hpp"

namespace pshard {

struct ComputeBytes {
  int64_t gpu_bytes = 0;         // includes gpu_stream_bytes
  int64_t gpu_stream_bytes = 0;  // slots of streamed weights and KV
  int64_t host_bytes = 0;
};

class ComputeBuffers {
 public:
  // The model must outlive this object. `n_tokens` sizes the graph, `context` the cache.
  ComputeBuffers(const Model& model, const ContextParameters& context, int64_t n_tokens);

  // O(layers). The placement must have the model's number of layers. Not thread-safe: the tables grow on first use of a pattern.
  [[nodiscard]] ComputeBytes operator()(const Placement& placement);

  // Combinations worked out so far.
  [[nodiscard]] int64_t n_replays() const { return n_replays_; }

 private:
  static constexpr size_t kContexts = 8;  // devices of: decided before, decided after, residual

  struct Cell {
    bool known = false;
    BlockBuffers buffers;
  };
  // Everything that is known of one pattern.
  struct PatternTable {
    BlockPlacement placement;
    std::vector<BlockEnds> ends;  // by block
    std::vector<Cell> cells;      // by block and context
  };
  // One step of a pass: a block under a pattern.
  struct Step {
    size_t block = 0;
    size_t pattern = 0;
    const BlockBuffers* buffers = nullptr;
    uint32_t gpu_inputs_so_far = 0;
  };

  size_t pattern_index(const BlockPlacement& placement);
  const BlockBuffers& buffers(PatternTable& table, size_t block, const BlockSurroundings& surroundings);
  void lay_path(const Placement& placement);
  [[nodiscard]] int64_t input_bytes(uint32_t bits, int64_t alignment) const;

  // Blocks: one per layer class, then the last layer, the embedding, the head.
  std::vector<Block> blocks_;
  std::vector<int64_t> slot_bytes_;  // of a block's cache, where it is streamed
  std::vector<size_t> layer_block_;  // by layer
  InputBytes input_bytes_{};
  int64_t host_fixed_bytes_ = 0;
  std::vector<PatternTable> tables_;
  std::vector<Step> path_;                // scratch, one per block of a pass
  std::vector<size_t> placement_tables_;  // scratch, by the placement's pattern
  int64_t n_replays_ = 0;
};

}  // namespace pshard
