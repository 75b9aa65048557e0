#include "cost/pass_cost.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <numeric>
#include <random>

#include "planning_cases.hpp"

namespace pshard {
namespace {

Pass pass(int64_t n_tokens) {
  Pass p;
  p.n_tokens = n_tokens;
  p.n_outputs = 1;
  return p;
}

Placement uniform(size_t n_layer, Where layers, Where head) {
  Placement p;
  p.patterns = {LayerPlacement::uniform(layers)};
  p.layer_pattern.assign(n_layer, 0);
  p.head = head;
  return p;
}

TEST(PassCost, ResidentDecodeReadsEveryWeightOnce) {
  // Three layers of 16.808 MB and a head of 10.004 MB at 1 TB/s; activations and one 256-cell cache add little. Then the logits go down.
  const Model model = cases::model(3);
  const Machine machine = cases::machine();
  const auto logits = 4.0 * static_cast<double>(model.hyperparameters().n_vocab);
  const double seconds = PassCost(model, machine, pass(1)).price(uniform(3, Where::pinned, Where::pinned)).seconds;
  const double weights = (3 * 16.808e6 + 10.004e6) / 1e12;
  const double download = machine.down.seconds(logits, logits);
  EXPECT_GT(seconds, weights + download);
  EXPECT_LT(seconds, 1.2 * weights + download);
}

TEST(PassCost, StreamedDecodeIsTheCopies) {
  // Everything over a link of 1 GB/s while the GPU needs a thousandth of that: the first layer's copy has only the embedding to hide under.
  const Model model = cases::model(4);
  const Machine machine = cases::machine();
  Placement p = uniform(4, Where::stream_a, Where::cpu);
  p.patterns = {LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  p.layer_pattern = {0, 1, 0, 1};
  const PassTime time = PassCost(model, machine, pass(1)).price(p);
  const double copies = 4 * (16.808e6 + 256 * 800) * 1e-9;
  EXPECT_NEAR(time.seconds, copies, 0.02 * copies);
  EXPECT_EQ(time.bottleneck(), Lane::up);
  // Embedding, four layers (the head's norm, without a weight of its own, runs in the last one's lane), the head's products.
  EXPECT_EQ(time.n_splits, 6);
}

TEST(PassCost, WeightsThatCannotBePageLockedCopyAtTheMixedRate) {
  const Model model = cases::model(2);
  Machine machine = cases::machine();
  machine.up.bytes_per_second = {10e9};
  machine.up.peak_bytes_per_second = 10e9;
  const Placement p = uniform(2, Where::stream_a, Where::cpu);
  const PassTime locked = PassCost(model, machine, pass(1)).price(p);
  machine.page_lock_bytes = 0;
  const PassTime pageable = PassCost(model, machine, pass(1)).price(p);
  // Every byte at 1 GB/s instead of 10: 0.9 ns more.
  EXPECT_NEAR(pageable.seconds - locked.seconds, locked.weights_up_bytes * 0.9e-9, 1e-9);
  // Half of the host's weights locked: half of that. Embedding and head are host weights too.
  machine.page_lock_bytes = (2 * 16'808'000 + 10'000'000 + 10'004'000) / 2;
  const PassTime half = PassCost(model, machine, pass(1)).price(p);
  EXPECT_NEAR(half.seconds - locked.seconds, locked.weights_up_bytes * 0.45e-9, 1e-9);
}

TEST(PassCost, HeadOnTheHostStaysThereWhereItIsNotOffloaded) {
  // 64 rows of logits: stock llama.cpp copies the head to the GPU, the pshard runtime multiplies where it lies.
  const Model model = cases::model(2);
  const Machine machine = cases::machine();
  Pass rows = pass(64);
  rows.n_outputs = 64;
  PassCost cost(model, machine, rows);
  Placement p = uniform(2, Where::pinned, Where::cpu);
  p.op_offload = true;
  const PassTime offloaded = cost.price(p);
  p.head_op_offload = false;
  const PassTime kept = cost.price(p);
  EXPECT_GE(offloaded.weights_up_bytes - kept.weights_up_bytes, 10e6);
  EXPECT_GT(kept.busy_seconds[static_cast<size_t>(Lane::cpu)], offloaded.busy_seconds[static_cast<size_t>(Lane::cpu)]);
}

TEST(PassCost, InternsAPatternOnce) {
  const Model model = cases::model(1);
  const Machine machine = cases::machine();
  PassCost cost(model, machine, pass(1));
  const uint8_t first = cost.intern(LayerPlacement::uniform(Where::pinned));
  EXPECT_NE(cost.intern(LayerPlacement::uniform(Where::cpu)), first);
  EXPECT_EQ(cost.intern(LayerPlacement::uniform(Where::pinned)), first);
}

TEST(PassCost, CountsWhatItPrices) {
  const Model model = cases::model(2);
  const Machine machine = cases::machine();
  PassCost cost(model, machine, pass(1));
  EXPECT_EQ(cost.n_priced(), 0);
  const Placement p = uniform(2, Where::cpu, Where::cpu);
  const double once = cost.price(p).seconds;
  EXPECT_DOUBLE_EQ(cost.price(p).seconds, once);
  EXPECT_EQ(cost.n_priced(), 2);
}

// Any group anywhere, any order of layers: the bound must hold far beyond what strategies ask for.
TEST(PassCost, NoPlacementBeatsItsBound) {
  std::mt19937 random(20);  // NOLINT: the same placements every time
  const auto pick = [&](double low, double high) { return low * std::pow(high / low, std::uniform_real_distribution(0.0, 1.0)(random)); };
  for (int round = 0; round < 60; ++round) {
    Machine machine = cases::machine();
    machine.gpu = cases::processor(pick(1e11, 4e12), pick(1e12, 1e15));
    machine.cpu = cases::processor(pick(1e10, 4e11), pick(1e11, 1e13));
    machine.gpu.op_seconds = pick(1e-7, 1e-4);
    machine.cpu.op_seconds = pick(1e-7, 1e-4);
    machine.up.bytes_per_second[0] = machine.up.peak_bytes_per_second = pick(1e9, 1e11);
    machine.up.latency_seconds = machine.down.latency_seconds = pick(1e-7, 1e-4);
    machine.host_bytes_per_second = pick(1e10, 4e11);
    machine.handoff_to_gpu_seconds = pick(1e-7, 1e-3);
    machine.handoff_to_cpu_seconds = pick(1e-7, 1e-3);
    machine.copy_engines = 1 + round % 2;
    machine.cpu_rate_under_copy = pick(0.2, 1.0);
    machine.copy_rate_under_cpu = pick(0.2, 1.0);
    machine.page_lock_bytes = round % 3 == 0 ? 0 : int64_t{1} << 40;
    const Model model = cases::model(5, round % 4 < 2);
    PassCost cost(model, machine, pass(std::array<int64_t, 4>{1, 16, 32, 512}[static_cast<size_t>(round) % 4]));
    for (int trial = 0; trial < 40; ++trial) {
      Placement p;
      p.op_offload = trial % 2 == 0;
      p.head = trial % 3 == 0 ? Where::pinned : Where::cpu;
      for (uint8_t i = 0; i < 5; ++i) {
        LayerPlacement layer;
        for (Where& where : layer.group) where = static_cast<Where>(std::uniform_int_distribution(0, 3)(random));
        p.patterns.push_back(layer);
        p.layer_pattern.push_back(i);
      }
      PassBound bound = cost.ends_bound(p.head, p.op_offload);
      for (size_t i = 0; i < 5; ++i) bound += cost.layer_bound(i, cost.intern(p.layer(i)), p.op_offload);
      for (size_t i = 1; i < 5; ++i) bound += cost.bound_behind(i, cost.intern(p.layer(i - 1)), cost.intern(p.layer(i)), p.op_offload);
      const PassTime time = cost.price(p);
      ASSERT_LE(bound.seconds(), time.seconds * (1 + 1e-12)) << "round " << round << ", trial " << trial;
      EXPECT_NEAR(std::accumulate(time.critical_seconds.begin(), time.critical_seconds.end(), 0.0), time.seconds, 1e-9 * time.seconds);
    }
  }
}

}  // namespace
}  // namespace pshard
