// Strategies as constraint sets over one placement type.
//
// A strategy and its knobs give exactly one placement: layers are taken in order (front to back, or back to front), the first `n_pinned`
// are resident, the next may be a partial boundary layer, the rest follows the strategy's rule. The five names are those of the llama.cpp
// planner pull request (#22691, first and second version); `stock` is what stock llama.cpp's flags can say.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/model.hpp"
#include "model/placement.hpp"

namespace pshard {

enum class Strategy : uint8_t {
  layerpin_layerstream,  // GPUONLY_LAYERPIN_LAYERSTREAM: pin whole layers, stream the others
  attnpin_ffnstream,     // GPUONLY_ATTNPIN_FFNSTREAM: attention resident everywhere, FFN of the others streamed
  ffncpu_attnstream,     // DYNAMIC_FFNCPU_ATTNSTREAM: FFN of the others on the CPU, their attention streamed
  static_attnprio,       // STATIC_ATTNPRIO_ALLMODELS: attention first, then whole layers; the rest on the CPU
  static_fitparams,      // STATIC_FITPARAMS_DENSEPRIO_MOEONLY: stock fit's rule, filled front to back
  stock,                 // any placement that stock llama.cpp's -ngl and -ot express with layers kept from the back
};
inline constexpr std::array kPullRequestStrategies{Strategy::layerpin_layerstream, Strategy::attnpin_ffnstream, Strategy::ffncpu_attnstream,
                                                   Strategy::static_attnprio, Strategy::static_fitparams};
[[nodiscard]] std::string_view to_string(Strategy strategy);
[[nodiscard]] std::optional<Strategy> strategy_from_name(std::string_view name);

// What stays resident of the boundary layer, besides everything that is not FFN. Each level keeps more than the one before.
enum class Overflow : uint8_t { none, attn, up, gate };
[[nodiscard]] std::string_view to_string(Overflow overflow);

struct Knobs {
  int32_t n_pinned = 0;       // whole layers
  int32_t n_attn_pinned = 0;  // layers whose attention side is resident; only static strategies choose it, >= n_pinned
  Overflow overflow = Overflow::none;
  bool output_on_gpu = false;
  bool pin_from_back = false;
  bool operator==(const Knobs&) const = default;
};

// The rules that a stretch of layers can follow. What a rule means for a layer's groups depends on the strategy (pattern_of).
enum class Rule : uint8_t { whole, boundary_attn, boundary_up, boundary_gate, attention_only, rest };
inline constexpr int kRuleCount = 6;

// Layers [begin, end) in pinning order under one rule.
struct Run {
  int32_t begin = 0;
  int32_t end = 0;
  Rule rule = Rule::rest;
};

// At most four runs, without allocation: whole, boundary, attention only, rest.
struct Runs {
  std::array<Run, 4> run;
  int32_t count = 0;
  [[nodiscard]] const Run* begin() const { return run.data(); }
  [[nodiscard]] const Run* end() const { return run.data() + count; }
};

// Runs that cover [0, n_layer) in pinning order.
[[nodiscard]] Runs runs_of(Strategy strategy, const Knobs& knobs, int32_t n_layer);

// Layers with an odd number stream on the other lane.
[[nodiscard]] LayerPlacement pattern_of(Strategy strategy, Rule rule, bool odd_layer);

// Layer that comes `order`-th in pinning order.
[[nodiscard]] constexpr int32_t layer_at(int32_t order, int32_t n_layer, bool pin_from_back) {
  return pin_from_back ? n_layer - 1 - order : order;
}

[[nodiscard]] bool uses_op_offload(Strategy strategy);
// The pshard runtime keeps the product that it knows as the result where its weight lies; stock llama.cpp's op-offload takes every head
// with it, and the runtime's those whose logits are scaled or capped afterwards.
[[nodiscard]] bool offloads_head(Strategy strategy, const Model& model);

// Every combination of knobs that the strategy allows, in a fixed order; their number is linear in layers.
[[nodiscard]] std::vector<Knobs> all_knobs(Strategy strategy, const Model& model);

// `has_gpu` false leaves op-offload out.
[[nodiscard]] Placement make_placement(Strategy strategy, const Knobs& knobs, const Model& model, bool has_gpu = true);

}  // namespace pshard
