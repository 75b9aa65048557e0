#include "plan/strategy.hpp"

#include <algorithm>
#include <stdexcept>

namespace pshard {
namespace {

constexpr std::array kFfn{Group::ffn_up, Group::ffn_gate, Group::ffn_down, Group::experts_up, Group::experts_gate, Group::experts_down};

// A layer whose groups `moved` are at `there` and everything else at `here`.
template <size_t N>
LayerPlacement split_layer(Where here, const std::array<Group, N>& moved, Where there) {
  LayerPlacement placement = LayerPlacement::uniform(here);
  for (const Group group : moved) placement[group] = there;
  return placement;
}

bool is_static(Strategy strategy) {
  return strategy == Strategy::static_attnprio || strategy == Strategy::static_fitparams || strategy == Strategy::stock;
}

}  // namespace

std::string_view to_string(Strategy strategy) {
  switch (strategy) {
    case Strategy::layerpin_layerstream:
      return "GPUONLY_LAYERPIN_LAYERSTREAM";
    case Strategy::attnpin_ffnstream:
      return "GPUONLY_ATTNPIN_FFNSTREAM";
    case Strategy::ffncpu_attnstream:
      return "DYNAMIC_FFNCPU_ATTNSTREAM";
    case Strategy::static_attnprio:
      return "STATIC_ATTNPRIO_ALLMODELS";
    case Strategy::static_fitparams:
      return "STATIC_FITPARAMS_DENSEPRIO_MOEONLY";
    case Strategy::stock:
      return "STOCK";
  }
  throw std::invalid_argument("unknown strategy");
}

std::optional<Strategy> strategy_from_name(std::string_view name) {
  for (const Strategy strategy : kPullRequestStrategies) {
    if (to_string(strategy) == name) return strategy;
  }
  return std::nullopt;
}

std::string_view to_string(Overflow overflow) {
  constexpr std::array<std::string_view, 4> names{"NONE", "ATTN", "UP", "GATE"};
  return names[static_cast<size_t>(overflow)];
}

bool uses_op_offload(Strategy strategy) { return is_static(strategy); }

bool offloads_head(Strategy strategy, const Model& model) {
  const GraphTraits& traits = model.hyperparameters().traits;
  return strategy == Strategy::stock || traits.scaled_logits || traits.logits_softcap > 0.0;
}

LayerPlacement pattern_of(Strategy strategy, Rule rule, bool odd_layer) {
  const Where lane = odd_layer ? Where::stream_b : Where::stream_a;
  const Where elsewhere = is_static(strategy) ? Where::cpu : lane;  // where the rest of a boundary layer goes
  switch (rule) {
    case Rule::whole:
      return LayerPlacement::uniform(Where::pinned);
    case Rule::boundary_attn:
      return split_layer(Where::pinned, kFfn, elsewhere);
    case Rule::boundary_up:
      return split_layer(Where::pinned, std::array{Group::ffn_gate, Group::ffn_down, Group::experts_gate, Group::experts_down}, elsewhere);
    case Rule::boundary_gate:
      return split_layer(Where::pinned, std::array{Group::ffn_down, Group::experts_down}, elsewhere);
    case Rule::attention_only:
      return split_layer(Where::pinned, kFfn, Where::cpu);
    case Rule::rest:
      break;
  }
  switch (strategy) {
    case Strategy::layerpin_layerstream:
      return LayerPlacement::uniform(lane);
    case Strategy::attnpin_ffnstream:
      return split_layer(Where::pinned, kFfn, Where::stream_a);
    case Strategy::ffncpu_attnstream:
      return split_layer(Where::stream_a, kFfn, Where::cpu);
    default:
      return LayerPlacement::uniform(Where::cpu);
  }
}

Runs runs_of(Strategy strategy, const Knobs& knobs, int32_t n_layer) {
  Runs runs;
  int32_t next = 0;
  const auto add = [&](int32_t end, Rule rule) {
    end = std::min(end, n_layer);
    if (end <= next) return;
    runs.run[static_cast<size_t>(runs.count++)] = {next, end, rule};
    next = end;
  };
  add(knobs.n_pinned, Rule::whole);
  if (knobs.overflow != Overflow::none) {
    constexpr auto first = static_cast<int>(Rule::boundary_attn) - static_cast<int>(Overflow::attn);
    add(next + 1, static_cast<Rule>(static_cast<int>(knobs.overflow) + first));
  }
  if (is_static(strategy)) add(knobs.n_attn_pinned, Rule::attention_only);
  add(n_layer, Rule::rest);
  return runs;
}

std::vector<Knobs> all_knobs(Strategy strategy, const Model& model) {
  const auto n_layer = static_cast<int32_t>(model.layers().size());
  const bool has_experts = model.hyperparameters().n_expert > 0;
  std::vector<Knobs> all;
  const auto add = [&](int32_t n_pinned, int32_t n_attn, Overflow overflow) {
    for (const bool output : {true, false}) {
      for (const bool back : {false, true}) {
        // Stock flags keep layers from the back; stock fit of the pull request fills from the front.
        if (strategy == Strategy::stock && !back) continue;
        if (strategy == Strategy::static_fitparams && back) continue;
        all.push_back({n_pinned, n_attn, overflow, output, back});
      }
    }
  };
  const auto add_parts = [&](int32_t n_pinned, int32_t n_attn) {
    add(n_pinned, n_attn, Overflow::up);
    add(n_pinned, n_attn, Overflow::gate);
  };
  if (!is_static(strategy)) {
    for (int32_t n_pinned = 0; n_pinned <= n_layer; ++n_pinned) {
      add(n_pinned, 0, Overflow::none);
      if (n_pinned == n_layer) break;
      add(n_pinned, 0, Overflow::attn);
      add_parts(n_pinned, 0);
    }
    return all;
  }
  // A layer of a static placement is whole, attention only, or on the CPU. Under one budget a mix of two of the three is best (the third
  // kind only fills a remainder), so three families and their boundary layer stand for all mixes.
  const bool partial = strategy == Strategy::stock || (strategy == Strategy::static_fitparams && has_experts);
  const bool attention_first = strategy != Strategy::static_fitparams || has_experts;
  const bool whole_layers_alone = strategy == Strategy::stock || !attention_first;
  if (attention_first) {
    for (int32_t n_attn = 0; n_attn < n_layer; ++n_attn) add(0, n_attn, Overflow::none);
    for (int32_t n_pinned = 0; n_pinned <= n_layer; ++n_pinned) {
      add(n_pinned, n_layer, Overflow::none);
      if (partial && n_pinned < n_layer) add_parts(n_pinned, n_layer);
    }
  }
  if (whole_layers_alone) {
    // What lies at the ends belongs to the families above, where these exist.
    const int32_t last = attention_first ? n_layer - 1 : n_layer;
    for (int32_t n_pinned = 0; n_pinned <= last; ++n_pinned) {
      if (n_pinned > 0 || !attention_first) add(n_pinned, n_pinned, Overflow::none);
      if (!partial || n_pinned + 1 >= n_layer) continue;
      if (n_pinned > 0) add(n_pinned, n_pinned + 1, Overflow::none);
      add_parts(n_pinned, n_pinned + 1);
    }
  }
  return all;
}

Placement make_placement(Strategy strategy, const Knobs& knobs, const Model& model, bool has_gpu) {
  const auto n_layer = static_cast<int32_t>(model.layers().size());
  Placement placement;
  placement.head = knobs.output_on_gpu ? Where::pinned : Where::cpu;
  placement.op_offload = has_gpu && uses_op_offload(strategy);
  placement.head_op_offload = offloads_head(strategy, model);
  placement.layer_pattern.resize(static_cast<size_t>(n_layer));
  const auto number_of = [&](const LayerPlacement& pattern) {
    const auto known = std::find(placement.patterns.begin(), placement.patterns.end(), pattern);
    if (known == placement.patterns.end()) placement.patterns.push_back(pattern);
    return static_cast<uint8_t>(std::find(placement.patterns.begin(), placement.patterns.end(), pattern) - placement.patterns.begin());
  };
  for (const Run& run : runs_of(strategy, knobs, n_layer)) {
    for (int32_t order = run.begin; order < run.end; ++order) {
      const int32_t layer = layer_at(order, n_layer, knobs.pin_from_back);
      placement.layer_pattern[static_cast<size_t>(layer)] = number_of(pattern_of(strategy, run.rule, layer % 2 != 0));
    }
  }
  return placement;
}

}  // namespace pshard
