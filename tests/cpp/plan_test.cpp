#include "plan/plan.hpp"

#include <gtest/gtest.h>

#include "planning_cases.hpp"

namespace pshard {
namespace {

constexpr int64_t kLayers = 2;

Placement everywhere(Where where) {
  Placement placement;
  placement.patterns = {LayerPlacement::uniform(where)};
  placement.layer_pattern.assign(kLayers, 0);
  placement.head = where;
  return placement;
}

// A tier with one candidate, which takes `seconds` a pass; negative: not viable.
TierPlan tier(int64_t batch_size, Where where, double seconds) {
  TierPlan plan;
  plan.batch_size = batch_size;
  Candidate candidate;
  candidate.micro_batch = batch_size;
  candidate.viable = seconds >= 0.0;
  candidate.placement = everywhere(where);
  candidate.time.seconds = seconds;
  plan.candidates.push_back(candidate);
  plan.best = candidate.viable ? 0 : -1;
  return plan;
}

ContextParameters context() {
  ContextParameters parameters;
  parameters.n_ctx = 8192;
  parameters.n_ubatch = 4096;
  parameters.n_batch = 4096;
  return parameters;
}

class PlanRuntime : public testing::Test {
 protected:
  RuntimePlan plan(const Workload& workload) const { return plan_runtime(model_, machine_, context(), workload, tiers_); }
  int64_t prompt_batch(int64_t prompt_tokens) const { return tiers_[static_cast<size_t>(plan({prompt_tokens, 8}).prompt_tier)].batch_size; }

  Model model_ = cases::model(kLayers);
  Machine machine_ = cases::machine();
  std::vector<TierPlan> tiers_{tier(1, Where::pinned, 0.5), tier(16, Where::pinned, 1.0), tier(512, Where::cpu, -1.0),
                               tier(1024, Where::cpu, 2.0), tier(4096, Where::cpu, 3.0)};
};

TEST_F(PlanRuntime, ShortPromptsTakeTheSmallestTierThatCoversThem) {
  EXPECT_EQ(prompt_batch(1), 1);
  EXPECT_EQ(prompt_batch(2), 16);
  EXPECT_EQ(prompt_batch(16), 16);
  EXPECT_EQ(prompt_batch(17), 1024);  // 512 is not viable
}

TEST_F(PlanRuntime, LongPromptsTakeNoTierBeyondTheSmallestThatCoversThem) {
  EXPECT_EQ(prompt_batch(600), 1024);
  EXPECT_EQ(prompt_batch(1024), 1024);
  EXPECT_GE(prompt_batch(6000), 1024);  // longer than every tier: all prompt tiers are weighed
}

TEST_F(PlanRuntime, DecodeRunsInTheSmallestTier) {
  const RuntimePlan result = plan({1024, 8});
  EXPECT_EQ(result.decode_tier, 0);
  EXPECT_DOUBLE_EQ(result.generate_seconds, 8 * 0.5);
}

TEST_F(PlanRuntime, PaysOneSwitchWhereThePlacementsDiffer) {
  const RuntimePlan result = plan({1024, 8});
  std::vector<int64_t> cache;
  for (const Layer& layer : model_.layers()) cache.push_back(cache_bytes(model_, layer, context()) / 8192 * 1024);
  const SwitchCost expected = switch_cost(model_, machine_, everywhere(Where::cpu), everywhere(Where::pinned), cache);
  EXPECT_GT(expected.up_bytes, 0);
  EXPECT_EQ(result.switch_bytes, expected.up_bytes + expected.down_bytes);
  EXPECT_DOUBLE_EQ(result.switch_seconds, expected.seconds);
}

TEST_F(PlanRuntime, SwitchesOnlyBetweenAPromptAndGeneration) {
  EXPECT_EQ(plan({1024, 0}).switch_seconds, 0.0);
  EXPECT_EQ(plan({0, 8}).switch_seconds, 0.0);
  EXPECT_EQ(plan({0, 8}).prompt_seconds, 0.0);
  EXPECT_EQ(plan({1, 8}).switch_seconds, 0.0);  // one tier serves both
}

TEST_F(PlanRuntime, IsNotViableWithoutATier) {
  tiers_ = {tier(1, Where::pinned, -1.0)};
  EXPECT_FALSE(plan({8, 8}).viable);
}

}  // namespace
}  // namespace pshard
