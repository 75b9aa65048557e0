// Compute buffers of a placement. The allocator's state between two blocks repeats from layer to layer, so one block from one state is
// replayed once; a placement then costs a table look-up per layer.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "memory/block_key.hpp"
#include "memory/memory.hpp"
#include "memory/replay.hpp"

namespace pshard {

struct ComputeBytes {
  std::array<int64_t, kMaxGpus> gpu_bytes{};  // by GPU; the first includes gpu_stream_bytes
  int64_t gpu_stream_bytes = 0;               // slots of streamed weights and KV
  int64_t host_bytes = 0;
};

class ComputeBuffers {
 public:
  // The model must outlive this object. `n_tokens` sizes the graph, `context` the cache. `n_gpu`: as many as its placements use, or more.
  ComputeBuffers(const Model& model, const ContextParameters& context, int64_t n_tokens, int n_gpu = 1);

  // O(layers) once its combinations of block and state have been seen. The placement must have the model's number of layers and at most
  // `n_gpu` GPUs. Not thread-safe: the tables grow.
  [[nodiscard]] ComputeBytes operator()(const Placement& placement) { return bytes(placement, {}); }
  // What llama.cpp allocates when it runs, where that differs from what it states before: it then heeds the ties of BlockPlacement.
  [[nodiscard]] ComputeBytes running(const Placement& placement);

  // Whether every fused attention runs on its layer's device, which llama.cpp asks of a pass of one token per sequence.
  [[nodiscard]] bool attends_in_place(const Placement& placement);

  // Bytes that the one GPU's buffer has at least, without a replay. O(layers).
  [[nodiscard]] int64_t gpu_at_least(const Placement& placement);
  // The same where this layer (or the head) is so placed, whatever lies around it.
  [[nodiscard]] int64_t gpu_floor(size_t layer, const LayerPlacement& placement, bool op_offload) const;
  [[nodiscard]] int64_t gpu_floor_of_head(Where head, bool op_offload) const;

  [[nodiscard]] size_t n_layer() const { return layer_block_.size(); }
  // Blocks replayed so far.
  [[nodiscard]] int64_t n_replays() const { return n_replays_; }

 private:
  // See BlockPlacement.
  struct Ties {
    bool norms = false;
    bool heads = false;
    bool operator==(const Ties&) const = default;
  };
  // A scheduled block with one outlook: what a transition depends on besides the state.
  struct Variant {
    ReplayOutlook outlook;
    size_t id = 0;
  };
  // A block under one placement, between two neighbours.
  struct Cell {
    Neighbours neighbours;
    ScheduledBlock scheduled;
    std::vector<Variant> variants;
  };
  struct Pattern {
    BlockPlacement placement;
    std::vector<BlockEnds> ends;                            // by block
    std::vector<std::vector<std::unique_ptr<Cell>>> cells;  // by block, few each
  };
  struct Transition {
    size_t variant = 0;
    size_t next = 0;
    size_t peaks = 0;
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
    std::array<Where, kHandedCount> handed_homes{};  // of what the block before hands on
    [[nodiscard]] const ScheduledBlock& scheduled() const { return cell->scheduled; }
  };

  void describe_layer(const Model& model, const ContextParameters& context, const Pass& pass, size_t index);
  size_t pattern_index(const BlockPlacement& placement);
  size_t embedding_pattern(const Placement& placement);
  size_t layer_pattern(const Placement& placement, size_t layer, size_t loads_state_of);
  void intern_patterns(const Placement& placement, Ties ties);
  Cell& cell(size_t pattern, size_t block, const Neighbours& neighbours);
  size_t state_index(const ReplayState& state);
  void list_leaves();
  [[nodiscard]] ReplayState state_before(bool pipeline) const;
  [[nodiscard]] ComputeBytes bytes(const Placement& placement, Ties ties);
  void lay_path(const Placement& placement, Ties ties);
  void look_ahead(bool pipeline);
  void look_ahead_at_lanes();
  void look_ahead_at_inputs();
  void look_ahead_at_shared();
  const StreamedCopies* joined(const StreamedCopies& part, const StreamedCopies* rest);
  size_t variant_index(Cell& cell, const ReplayOutlook& outlook);
  Transition advance(size_t state, const Step& step);

  // Blocks: those of the layers, then the embedding, the head.
  std::vector<Block> blocks_;
  std::vector<BlockKey> block_keys_;               // by block, of layers
  std::vector<size_t> loads_state_of_;             // by layer: the one whose state it loads
  std::vector<int32_t> shared_cache_;              // by layer: the one whose cache it reads, or -1
  std::vector<std::vector<int64_t>> cache_bytes_;  // by block: the tensors of its KV or state
  std::vector<size_t> layer_block_;                // by layer
  int64_t n_states_ = 1;
  bool has_encoder_ = false;
  const Tensor* reads_first_layer_ = nullptr;  // a weight of the first layer that all layers read
  struct Leaf {
    size_t step = 0;  // of the path
    int32_t value = kNoValue;
    GraphInput input = GraphInput::none;  // a room where it is none
    int64_t n_bytes = 0;
  };
  std::vector<Leaf> leaves_;  // of the pass, inputs once
  bool has_rooms_ = false;
  int64_t embeddings_bytes_ = 0;
  bool loads_before_norm_ = false;
  InputBytes input_bytes_{};
  InputBits cast_inputs_ = 0;
  size_t n_devices_ = 0;
  std::vector<Where> places_;
  bool few_tokens_ = false;
  std::vector<Pattern> patterns_;
  std::vector<State> states_;  // the first two are the states before the pass, without and with pipeline copies, unless it has rooms
  std::unordered_multimap<size_t, size_t> states_by_hash_;
  std::vector<ReplayPeaks> peaks_;     // of the transitions
  std::deque<StreamedCopies> joined_;  // copies of splits that span blocks
  size_t n_variants_ = 0;
  int64_t n_replays_ = 0;
  ReplayState replayed_{0};                // scratch: behind a block
  std::vector<Step> path_;                 // scratch: the blocks of a pass
  std::vector<size_t> placement_pattern_;  // scratch: index into patterns_ by the placement's own
  std::vector<LayerPlacement> interned_;   // whose numbers placement_pattern_ holds
  bool interned_op_offload_ = false;
  Ties interned_ties_{};
};

}  // namespace pshard
