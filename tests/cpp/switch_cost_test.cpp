#include "cost/switch_cost.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

#include "planning_cases.hpp"

namespace pshard {
namespace {

Placement placement(Where first, Where second, Where head) {
  Placement p;
  p.patterns = {LayerPlacement::uniform(first), LayerPlacement::uniform(second)};
  p.layer_pattern = {0, 1};
  p.head = head;
  return p;
}

constexpr int64_t kLayerBytes = 16'808'000;
constexpr int64_t kHeadBytes = 10'004'000;  // with its norm
const std::vector<int64_t> kCache{300'000, 500'000};

SwitchCost cost(const Placement& from, const Placement& to) {
  const Model model = cases::model(2);
  return switch_cost(model, cases::machine(), from, to, kCache);
}

TEST(SwitchCost, StayingCostsNothing) {
  const Placement p = placement(Where::pinned, Where::stream_a, Where::pinned);
  const SwitchCost c = cost(p, p);
  EXPECT_EQ(c.up_bytes, 0);
  EXPECT_EQ(c.down_bytes, 0);
  EXPECT_DOUBLE_EQ(c.seconds, 0.0);
}

TEST(SwitchCost, BringsWhatBecomesResident) {
  // Layer 1 with its cache and the head go up, at 1 ns per byte.
  const SwitchCost c = cost(placement(Where::pinned, Where::cpu, Where::cpu), placement(Where::pinned, Where::pinned, Where::pinned));
  EXPECT_EQ(c.up_bytes, kLayerBytes + kHeadBytes + 500'000);
  EXPECT_EQ(c.down_bytes, 0);
  EXPECT_NEAR(c.seconds, static_cast<double>(c.up_bytes) * 1e-9, 1e-12);
}

TEST(SwitchCost, DropsWeightsButSavesTheCache) {
  const SwitchCost c = cost(placement(Where::pinned, Where::pinned, Where::pinned), placement(Where::stream_a, Where::pinned, Where::cpu));
  EXPECT_EQ(c.up_bytes, 0);
  EXPECT_EQ(c.down_bytes, 300'000);
  EXPECT_NEAR(c.seconds, 300e-6, 1e-12);
}

TEST(SwitchCost, BothDirectionsAddUp) {
  const SwitchCost c = cost(placement(Where::pinned, Where::cpu, Where::cpu), placement(Where::cpu, Where::pinned, Where::cpu));
  EXPECT_EQ(c.up_bytes, kLayerBytes + 500'000);
  EXPECT_EQ(c.down_bytes, 300'000);
  EXPECT_NEAR(c.seconds, static_cast<double>(c.up_bytes + c.down_bytes) * 1e-9, 1e-12);
}

TEST(SwitchCost, BetweenHostHomesNothingMoves) {
  const SwitchCost c = cost(placement(Where::cpu, Where::cpu, Where::cpu), placement(Where::stream_a, Where::stream_b, Where::cpu));
  EXPECT_EQ(c.up_bytes + c.down_bytes, 0);
}

TEST(SwitchCost, RefusesPlacementsOfAnotherModel) {
  Placement shorter = placement(Where::cpu, Where::cpu, Where::cpu);
  shorter.layer_pattern.pop_back();
  EXPECT_THROW((void)cost(shorter, placement(Where::cpu, Where::cpu, Where::cpu)), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
