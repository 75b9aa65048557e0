// Compute buffers of a placement. The allocator's state between two blocks repeats from layer to layer, so one block from one state is
// replayed once; a placement then costs a table look-up per layer.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "memory/memory.hpp"
#include "memory/replay.hpp"

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

  // O(layers) once its combinations of block and state have been seen. The placement must have the model's number of layers. Not
  // thread-safe: the tables grow.
  [[nodiscard]] ComputeBytes operator()(const Placement& placement);

  // Bytes that the GPU's buffer has at least where this layer (or the head) is so placed, whatever lies around it: the largest result of
  // one operation there, with its weight where that is copied for it. A search rules placements out by it without a replay.
  [[nodiscard]] int64_t gpu_floor(size_t layer, const LayerPlacement& placement, bool op_offload) const;
  [[nodiscard]] int64_t gpu_floor_of_head(Where head, bool op_offload) const;

  [[nodiscard]] size_t n_layer() const { return layer_block_.size(); }
  // Blocks replayed so far.
  [[nodiscard]] int64_t n_replays() const { return n_replays_; }

 private:
  // A scheduled block with one outlook: what a transition depends on besides the state.
  struct Variant {
    ReplayOutlook outlook;
    size_t id = 0;
  };
  struct Cell {
    bool known = false;
    ScheduledBlock scheduled;
    std::vector<Variant> variants;
  };
  struct Pattern {
    BlockPlacement placement;
    std::vector<BlockEnds> ends;  // by block
    std::vector<Cell> cells;      // by block and neighbours
  };
  struct Transition {
    size_t variant = 0;
    size_t next = 0;
    ReplayPeaks peaks;
  };
  struct State {
    ReplayState state;
    std::vector<Transition> transitions;  // those seen, few
  };
  // One block of a pass.
  struct Step {
    size_t block = 0;
    size_t pattern = 0;
    Cell* cell = nullptr;
    ReplayOutlook outlook;
  };

  size_t pattern_index(const BlockPlacement& placement);
  void intern_patterns(const Placement& placement);
  size_t state_index(const ReplayState& state);
  void lay_path(const Placement& placement);
  void look_ahead();
  size_t variant_index(Cell& cell, const ReplayOutlook& outlook);
  const Transition& advance(size_t state, const Step& step);

  // Blocks: one per layer class, then the last layer, the embedding, the head.
  std::vector<Block> blocks_;
  std::vector<int64_t> slot_bytes_;  // of a block's cache, where it is streamed
  std::vector<size_t> layer_block_;  // by layer
  InputBytes input_bytes_{};
  InputBits cast_inputs_ = 0;
  std::vector<Pattern> patterns_;
  std::vector<State> states_;  // the first is the state before the pass
  std::unordered_multimap<size_t, size_t> states_by_hash_;
  size_t n_variants_ = 0;
  int64_t n_replays_ = 0;
  std::vector<Step> path_;                 // scratch: the blocks of a pass
  std::vector<size_t> placement_pattern_;  // scratch: index into patterns_ by the placement's own
  std::vector<LayerPlacement> interned_;   // whose numbers placement_pattern_ holds
  bool interned_op_offload_ = false;
};

}  // namespace pshard
