#include "plan/fit_shape.hpp"

#include <gtest/gtest.h>

#include <string>

#include "planning_cases.hpp"

namespace pshard {
namespace {

constexpr Where kGpu0 = Where::pinned;
const Where kGpu1 = pinned_on(1);

TEST(FitShape, PatternsCatchWhatBeginsLikeThePart) {
  for (const char* name : {"ffn_up_exps.weight", "ffn_gate_up_exps.weight", "ffn_down_chexps.weight", "ffn_gate_exps.bias"}) {
    EXPECT_TRUE(is_moved(name, Overflow::none)) << name;
    EXPECT_TRUE(is_moved(name, Overflow::attn)) << name;
  }
  for (const char* name : {"ffn_gate_inp.weight", "ffn_gate_shexp.weight", "ffn_up.weight", "exp_probs_b.bias", "ffn_norm.weight"}) {
    EXPECT_FALSE(is_moved(name, Overflow::none)) << name;
  }
  EXPECT_TRUE(is_moved("ffn_gate_inp.weight", Overflow::up));
  EXPECT_TRUE(is_moved("ffn_gate_up_exps.weight", Overflow::up));
  EXPECT_FALSE(is_moved("ffn_up_exps.weight", Overflow::up));
  EXPECT_TRUE(is_moved("ffn_down_exps.weight", Overflow::gate));
  EXPECT_FALSE(is_moved("ffn_gate_exps.weight", Overflow::gate));
  EXPECT_FALSE(is_moved("exp_probs_b.bias", Overflow::attn));
  EXPECT_FALSE(is_moved("ffn_norm.weight", Overflow::attn));
}

TEST(FitShape, LayersGoFromTheBackAndTheFirstPartialHandsOnToTheNextGpu) {
  const Model model = cases::model(4, true);
  FitShapes shapes(model, {1, 1}, true, true);
  // Layers 1 and 2 on GPU 0, of which 2 keeps the up projections; layer 3 and the output on GPU 1, which counts the output first.
  const Placement placement = shapes.distributed({{2, 1, Overflow::up}, {2, 1, Overflow::none}});
  EXPECT_EQ(placement.layer(0), LayerPlacement::uniform(Where::cpu));
  EXPECT_EQ(placement.layer(1), LayerPlacement::uniform(kGpu0));
  LayerPlacement boundary = LayerPlacement::uniform(kGpu0);
  boundary[Group::router] = boundary[Group::experts_gate] = boundary[Group::experts_down] = kGpu1;
  EXPECT_EQ(placement.layer(2), boundary);
  EXPECT_EQ(placement.layer(3), LayerPlacement::uniform(kGpu1));  // its override is that of layer 4, which is the output
  EXPECT_EQ(placement.head, kGpu1);
  EXPECT_FALSE(placement.pipeline);
}

TEST(FitShape, ThePipelineNeedsAllLayersAndNoOverride) {
  const Model model = cases::model(4, true);
  FitShapes shapes(model, {1, 1}, true, true);
  EXPECT_TRUE(shapes.initial().pipeline);
  EXPECT_TRUE(shapes.distributed({{2, 0, Overflow::none}, {3, 0, Overflow::none}}).pipeline);
  EXPECT_FALSE(shapes.distributed({{2, 0, Overflow::none}, {2, 0, Overflow::none}}).pipeline);
  EXPECT_FALSE(shapes.distributed({{2, 0, Overflow::none}, {3, 1, Overflow::none}}).pipeline);
  EXPECT_FALSE(shapes.without_experts().pipeline);
  EXPECT_FALSE(FitShapes(model, {1}, true, true).initial().pipeline);
  EXPECT_FALSE(FitShapes(model, {1, 1}, false, true).initial().pipeline);
}

TEST(FitShape, WithoutExpertsOnlyExpertsLeave) {
  const Model model = cases::model(2, true);
  LayerPlacement expected = LayerPlacement::uniform(kGpu0);
  expected[Group::experts_up] = expected[Group::experts_gate] = expected[Group::experts_down] = Where::cpu;
  EXPECT_EQ(FitShapes(model, {1}, true, true).without_experts().layer(0), expected);
}

TEST(FitShape, ATensorThatPartsFromItsGroupIsAnException) {
  const Model plain = cases::model(2, true);
  std::vector<Tensor> tensors = cases::tensors_of(plain);
  for (int i = 0; i < 2; ++i) {
    tensors.push_back(cases::tensor("blk." + std::to_string(i) + ".exp_probs_b.bias", cases::kF32, {cases::kExperts, 1, 1, 1}));
  }
  const Model model(plain.hyperparameters(), tensors);
  FitShapes shapes(model, {1}, true, true);
  const Placement placement = shapes.distributed({{3, 1, Overflow::attn}});
  EXPECT_EQ(placement.exceptions.size(), 0);  // layer 2 is the output
  const Placement cut = shapes.distributed({{3, 2, Overflow::attn}});
  ASSERT_EQ(cut.exceptions.size(), 1);
  EXPECT_EQ(cut.layer(1)[Group::router], Where::cpu);
  EXPECT_EQ(cut.exceptions[0].name, "blk.1.exp_probs_b.bias");
  EXPECT_EQ(cut.exceptions[0].where, kGpu0);
}

TEST(FitShape, PredictionLayersAreCountedForLayersAndForgottenForOverrides) {
  const Model plain = cases::model(4, true);
  Hyperparameters h = plain.hyperparameters();
  h.n_layer = 3;  // the fourth predicts
  h.n_layer_nextn = 1;
  const Model model(h, cases::tensors_of(plain));
  FitShapes shapes(model, {1}, true, true);
  const Placement placement = shapes.distributed({{4, 3, Overflow::none}});
  EXPECT_EQ(placement.layer(0), LayerPlacement::uniform(Where::cpu));  // 4 of 5 from the back
  EXPECT_EQ(placement.layer(1)[Group::experts_up], Where::cpu);        // overrides begin at 3 + 1 - 4 + 1
  EXPECT_EQ(shapes.distributed({{4, 2, Overflow::none}}).layer(1), LayerPlacement::uniform(kGpu0));
}

}  // namespace
}  // namespace pshard
