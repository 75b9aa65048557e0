#include "plan/strategy.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <tuple>

#include "planning_cases.hpp"

namespace pshard {
namespace {

// One letter per group of a layer: P resident, a and b streamed, C on the CPU; in the order attention, cache, FFN up, gate, down.
std::string letters(const LayerPlacement& layer, bool with_experts) {
  const auto letter = [](Where where) { return "PabC"[static_cast<size_t>(where)]; };
  std::string text{letter(layer[Group::attention]), letter(layer[Group::cache])};
  for (const Group group : with_experts ? std::array{Group::experts_up, Group::experts_gate, Group::experts_down}
                                        : std::array{Group::ffn_up, Group::ffn_gate, Group::ffn_down}) {
    text += letter(layer[group]);
  }
  return text;
}

std::string shape(Strategy strategy, const Knobs& knobs, bool with_experts = false) {
  const Model model = cases::model(4, with_experts);
  const Placement placement = make_placement(strategy, knobs, model);
  std::string text;
  for (size_t i = 0; i < 4; ++i) {
    if (i > 0) text += ' ';
    text += letters(placement.layer(i), with_experts);
  }
  return text;
}

TEST(Strategy, NamesAreTheStableKey) {
  const std::set<std::string_view> expected{"GPUONLY_LAYERPIN_LAYERSTREAM", "GPUONLY_ATTNPIN_FFNSTREAM", "DYNAMIC_FFNCPU_ATTNSTREAM",
                                            "STATIC_ATTNPRIO_ALLMODELS", "STATIC_FITPARAMS_DENSEPRIO_MOEONLY"};
  std::set<std::string_view> names;
  for (const Strategy strategy : kPullRequestStrategies) {
    names.insert(to_string(strategy));
    EXPECT_EQ(strategy_from_name(to_string(strategy)), strategy);
  }
  EXPECT_EQ(names, expected);
  EXPECT_EQ(strategy_from_name("STOCK"), std::nullopt);  // not one that a registry may name
  EXPECT_EQ(strategy_from_name("static_attnprio_allmodels"), std::nullopt);
}

TEST(Strategy, LayerStreamTakesLanesInTurn) {
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 1}), "PPPPP bbbbb aaaaa bbbbb");
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 0}), "aaaaa bbbbb aaaaa bbbbb");
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 4}), "PPPPP PPPPP PPPPP PPPPP");
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 1, .pin_from_back = true}), "aaaaa bbbbb aaaaa PPPPP");
}

TEST(Strategy, TheBoundaryLayerIsTheFirstThatIsNotWhole) {
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 1, .overflow = Overflow::attn}), "PPPPP PPbbb aaaaa bbbbb");
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 1, .overflow = Overflow::up}), "PPPPP PPPbb aaaaa bbbbb");
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 1, .overflow = Overflow::gate}), "PPPPP PPPPb aaaaa bbbbb");
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 0, .overflow = Overflow::gate}), "PPPPa bbbbb aaaaa bbbbb");
  EXPECT_EQ(shape(Strategy::layerpin_layerstream, {.n_pinned = 1, .overflow = Overflow::up, .pin_from_back = true}),
            "aaaaa bbbbb PPPaa PPPPP");
}

TEST(Strategy, FfnStreamUsesOneLane) {
  EXPECT_EQ(shape(Strategy::attnpin_ffnstream, {.n_pinned = 1}), "PPPPP PPaaa PPaaa PPaaa");
  EXPECT_EQ(shape(Strategy::attnpin_ffnstream, {.n_pinned = 1, .overflow = Overflow::gate}), "PPPPP PPPPb PPaaa PPaaa");
}

TEST(Strategy, AttentionStreamsWithItsCacheBesideFfnOnTheCpu) {
  EXPECT_EQ(shape(Strategy::ffncpu_attnstream, {.n_pinned = 2}), "PPPPP PPPPP aaCCC aaCCC");
  EXPECT_EQ(shape(Strategy::ffncpu_attnstream, {.n_pinned = 2}, true), "PPPPP PPPPP aaCCC aaCCC");
}

TEST(Strategy, StaticPutsAttentionBeforeWholeLayers) {
  EXPECT_EQ(shape(Strategy::static_attnprio, {.n_pinned = 1, .n_attn_pinned = 3}), "PPPPP PPCCC PPCCC CCCCC");
  EXPECT_EQ(shape(Strategy::static_attnprio, {.n_pinned = 1, .n_attn_pinned = 3, .pin_from_back = true}), "CCCCC PPCCC PPCCC PPPPP");
  EXPECT_EQ(shape(Strategy::static_fitparams, {.n_pinned = 1, .n_attn_pinned = 4, .overflow = Overflow::up}, true),
            "PPPPP PPPCC PPCCC PPCCC");
  EXPECT_EQ(shape(Strategy::stock, {.n_pinned = 1, .n_attn_pinned = 2, .overflow = Overflow::gate, .pin_from_back = true}),
            "CCCCC CCCCC PPPPC PPPPP");
}

TEST(Strategy, RouterNormsAndSharedExpertsStayWithTheLayer) {
  const LayerPlacement rest = pattern_of(Strategy::attnpin_ffnstream, Rule::rest, false);
  for (const Group group : {Group::router, Group::norms, Group::mixer, Group::shared_up, Group::shared_gate, Group::shared_down}) {
    EXPECT_EQ(rest[group], Where::pinned) << to_string(group);
  }
  const LayerPlacement streamed = pattern_of(Strategy::ffncpu_attnstream, Rule::rest, false);
  EXPECT_EQ(streamed[Group::router], Where::stream_a);
}

TEST(Strategy, OnlyStaticOnesOffloadOperations) {
  const Model model = cases::model(2);
  for (const Strategy strategy : kPullRequestStrategies) {
    const bool is_static = strategy == Strategy::static_attnprio || strategy == Strategy::static_fitparams;
    EXPECT_EQ(make_placement(strategy, {}, model).op_offload, is_static) << to_string(strategy);
    EXPECT_FALSE(make_placement(strategy, {}, model, false).op_offload);  // no GPU to offload to
  }
  EXPECT_TRUE(make_placement(Strategy::stock, {}, model).op_offload);
}

TEST(Strategy, TheHeadFollowsItsKnob) {
  const Model model = cases::model(2);
  EXPECT_EQ(make_placement(Strategy::layerpin_layerstream, {.output_on_gpu = true}, model).head, Where::pinned);
  EXPECT_EQ(make_placement(Strategy::layerpin_layerstream, {}, model).head, Where::cpu);
}

size_t count(Strategy strategy, bool with_experts = false) { return all_knobs(strategy, cases::model(4, with_experts)).size(); }

TEST(AllKnobs, HoldsEveryCombinationOnce) {
  // 0..3 whole layers with 4 levels of overflow, and 4 without; each with the head on either side and either end first.
  EXPECT_EQ(count(Strategy::layerpin_layerstream), (4u * 4u + 1u) * 4u);
  EXPECT_EQ(count(Strategy::static_attnprio), (4u + 5u) * 4u);  // 0..3 layers' attention; all attention and 0..4 whole layers
  // Stock from the back only: the same 9, 4 of them with a layer to split at two levels; besides, whole layers alone (3), each with a
  // layer's attention as remainder (2), that layer also split (3, two levels).
  EXPECT_EQ(count(Strategy::stock), (9u + 4u * 2u + 3u + 2u + 3u * 2u) * 2u);
  EXPECT_EQ(count(Strategy::static_fitparams), 5u * 2u);  // dense: whole layers from the front
  // Experts: no whole layer before all attention: 5 + 4 pairs, 4 of them with all attention and a layer to split.
  EXPECT_EQ(count(Strategy::static_fitparams, true), (9u + 4u * 2u) * 2u);
  for (const Strategy strategy : {Strategy::layerpin_layerstream, Strategy::attnpin_ffnstream, Strategy::ffncpu_attnstream,
                                  Strategy::static_attnprio, Strategy::static_fitparams, Strategy::stock}) {
    std::set<std::tuple<int, int, int, bool, bool>> seen;
    for (const Knobs& k : all_knobs(strategy, cases::model(4, true))) {
      EXPECT_TRUE(seen.insert({k.n_pinned, k.n_attn_pinned, static_cast<int>(k.overflow), k.output_on_gpu, k.pin_from_back}).second);
    }
  }
}

TEST(AllKnobs, HoldTheConstraintsOfTheirStrategy) {
  for (const Knobs& k : all_knobs(Strategy::stock, cases::model(4, true))) {
    EXPECT_TRUE(k.pin_from_back);
    EXPECT_LE(k.n_pinned, k.n_attn_pinned);
    if (k.overflow != Overflow::none) {
      EXPECT_LT(k.n_pinned, k.n_attn_pinned);  // a boundary layer's attention is resident
    }
  }
  for (const Knobs& k : all_knobs(Strategy::static_fitparams, cases::model(4, true))) {
    EXPECT_FALSE(k.pin_from_back);
    EXPECT_TRUE(k.n_pinned == 0 || k.n_attn_pinned == 4);
  }
  for (const Knobs& k : all_knobs(Strategy::static_fitparams, cases::model(4))) EXPECT_EQ(k.n_pinned, k.n_attn_pinned);
}

TEST(Runs, CoverAllLayersOnce) {
  const Model model = cases::model(4, true);
  for (const Strategy strategy : kPullRequestStrategies) {
    for (const Knobs& knobs : all_knobs(strategy, model)) {
      int32_t next = 0;
      for (const pshard::Run& run : runs_of(strategy, knobs, 4)) {
        EXPECT_EQ(run.begin, next);
        EXPECT_GT(run.end, run.begin);
        next = run.end;
      }
      EXPECT_EQ(next, 4);
    }
  }
}

}  // namespace
}  // namespace pshard
