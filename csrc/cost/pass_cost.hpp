// Seconds of one forward pass for any placement of one model on one machine at one batch.
//
// Building is linear in the distinct layers; each (layer class, pattern, neighbourhood) is lowered to splits once, on first use. Pricing a
// placement is then linear in layers, a few additions per split, and allocates nothing.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cost/lowering.hpp"
#include "cost/machines.hpp"
#include "cost/timeline.hpp"
#include "machine/machine.hpp"
#include "model/forward.hpp"
#include "model/model.hpp"
#include "model/placement.hpp"

namespace pshard {

// A placement in the numbering of one PassCost: what a search hands over thousands of times.
struct InternedPlacement {
  std::span<const uint8_t> layer_pattern;  // ids from PassCost::intern, one per layer
  Where head = Where::cpu;
  bool op_offload = false;
  bool head_op_offload = true;  // as in Placement: counts where op_offload is set
};

class PassCost {
 public:
  // `model` and `machines` must outlive the object. Throws std::invalid_argument where a weight type has no rate on a processor.
  PassCost(const Model& model, const Machines& machines, const Pass& pass, const Counted& counted = {});

  [[nodiscard]] const Pass& pass() const { return pass_; }

  // Number of a pattern; the same pattern always gets the same number. At most 255 patterns; throws std::length_error beyond.
  uint8_t intern(const LayerPlacement& pattern);

  [[nodiscard]] PassTime price(const InternedPlacement& placement, std::vector<SplitTime>* splits = nullptr);
  // `splits`, where given, gets one entry for each split. Throws std::invalid_argument where there are more GPUs than machines, unless
  // one stands for all. Each GPU has a link of its own.
  [[nodiscard]] PassTime price(const Placement& placement, std::vector<SplitTime>* splits = nullptr);

  // Bound of one layer under one pattern, of what it adds behind a layer under another, and of head and embedding; the sum over a placement
  // (with any part of what lies between) is at most price().seconds.
  [[nodiscard]] PassBound layer_bound(size_t layer, uint8_t pattern, bool op_offload);
  [[nodiscard]] PassBound bound_behind(size_t layer, uint8_t previous_pattern, uint8_t pattern, bool op_offload);
  [[nodiscard]] PassBound ends_bound(Where head, bool op_offload) const;
  // Graph inputs go up for every placement that uses the GPU at all.
  [[nodiscard]] PassBound gpu_use_bound() const;

  // Placements priced since construction: the search's cost, exact on any machine.
  [[nodiscard]] int64_t n_priced() const { return n_priced_; }

 private:
  // One block under one placement: its ends, its bound, and its segments by neighbourhood.
  struct Placed {
    BlockPlacement placement;
    BlockEnds ends;
    PassBound least;
    double host_bytes = 0.0;
    std::array<std::optional<LoweredBlock>, 32> by_neighbourhood;  // lane before, lane after, device of the residual
  };
  [[nodiscard]] Placed place(const PricedBlock& block, const BlockPlacement& placement) const;
  [[nodiscard]] const LoweredBlock& lowered(const PricedBlock& block, Placed& placed, const Neighbours& neighbours, Device residual) const;
  [[nodiscard]] Placed& placed_layer(size_t layer, uint8_t pattern, bool op_offload);
  [[nodiscard]] Placed& placed_head(Where where, bool op_offload);
  // Of the blocks in `path_`.
  [[nodiscard]] PassTime price_path(std::vector<SplitTime>* splits);
  // What a copied byte costs on top of the link curve when the driver will not page-lock all host weights: the rest moves at the pageable
  // rate, and which tensors that are is not known, so each byte bears the mean.
  [[nodiscard]] double unlocked_seconds_per_byte(double host_bytes) const;

  const Model& model_;
  Machines machines_;
  Pass pass_;
  std::vector<PricedBlock> blocks_;     // per variant: (layer class, is last layer)
  std::vector<int32_t> layer_variant_;  // per layer: index into blocks_
  PricedBlock head_block_;
  PricedBlock embedding_block_;
  std::vector<LayerPlacement> patterns_;
  std::vector<std::unique_ptr<Placed>> layers_;   // [pattern][variant][op_offload]
  std::array<std::unique_ptr<Placed>, 4> heads_;  // [pinned][op_offload]
  Placed embedding_;
  std::vector<Placed*> path_;          // scratch: the blocks of a placement in order
  std::vector<double> input_seconds_;  // graph inputs, up, once per pass, to the first GPU that is used; by machine
  double input_bytes_ = 0.0;
  double output_bytes_ = 0.0;  // logits
  int64_t n_priced_ = 0;
};

}  // namespace pshard
