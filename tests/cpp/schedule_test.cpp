#include "model/schedule.hpp"

#include <gtest/gtest.h>

namespace pshard {
namespace {

const Tensor kQuery{"blk.0.attn_q.weight", {1, 1, 2}, {64, 64, 1, 1}, 8192};
const Tensor kUp{"blk.0.ffn_up.weight", {1, 1, 2}, {64, 64, 1, 1}, 8192};

Operation operation(std::initializer_list<int32_t> inputs, int32_t output, Group group = Group::norms, const Tensor* weight = nullptr) {
  Operation result;
  result.group = group;
  result.weight = weight;
  result.output = output;
  size_t i = 0;
  for (const int32_t input : inputs) result.inputs.at(i++) = input;
  return result;
}

// norm, query, activation, up, activation, sum with what came in.
Block layer() {
  Block b;
  b.values.resize(7);
  b.residual_in = 0;
  b.residual_out = 6;
  b.operations = {operation({0}, 1), operation({1}, 2, Group::attention, &kQuery),
                  operation({2}, 3), operation({3}, 4, Group::ffn_up, &kUp),
                  operation({4}, 5), operation({5, 0}, 6)};
  return b;
}

std::vector<Where> lanes(const Block& block, const LayerPlacement& placement, Neighbours neighbours = {}) {
  std::vector<Where> result;
  for (const ScheduledOperation& operation : schedule(block, {.layer = placement}, neighbours)) result.push_back(operation.lane);
  return result;
}

LayerPlacement ffn_elsewhere(Where here, Where there) {
  LayerPlacement placement = LayerPlacement::uniform(here);
  placement[Group::ffn_up] = there;
  return placement;
}

constexpr Where kPinned = Where::pinned, kA = Where::stream_a, kB = Where::stream_b, kCpu = Where::cpu;

TEST(Schedule, OperationsWithoutWeightsFollowTheGpuOnEitherSide) {
  const Block b = layer();
  EXPECT_EQ(lanes(b, ffn_elsewhere(kPinned, kCpu)), std::vector<Where>({kPinned, kPinned, kPinned, kCpu, kCpu, kCpu}));
  EXPECT_EQ(lanes(b, ffn_elsewhere(kPinned, kCpu), {kCpu, kPinned}),
            std::vector<Where>({kPinned, kPinned, kPinned, kCpu, kPinned, kPinned}));
  EXPECT_EQ(lanes(b, ffn_elsewhere(kCpu, kPinned)), std::vector<Where>({kCpu, kCpu, kPinned, kPinned, kPinned, kPinned}));
}

TEST(Schedule, BetweenTwoGpusTheyStayOnTheFirst) {
  const Block b = layer();
  const Where second = pinned_on(1), third = pinned_on(2);
  EXPECT_EQ(lanes(b, ffn_elsewhere(kPinned, second), {third, kCpu}), std::vector<Where>({third, kPinned, kPinned, second, second, second}));
  EXPECT_EQ(lanes(b, ffn_elsewhere(second, kCpu), {kCpu, third}), std::vector<Where>({second, second, second, kCpu, third, third}));
}

TEST(Schedule, WhatNoGpuCanRunIsAloneOnTheHost) {
  Block b = layer();
  b.operations[2].host_only = true;
  EXPECT_EQ(lanes(b, LayerPlacement::uniform(kPinned)), std::vector<Where>({kPinned, kPinned, kCpu, kPinned, kPinned, kPinned}));
}

// Rope factors are where the layer is. A GPU that they are not on refuses the rope (ggml_backend_cuda_device_supports_op).
TEST(Schedule, ASmallWeightOnAnotherGpuKeepsItsOperationThere) {
  const Tensor factors{"rope_freqs.weight", {0, 1, 4}, {64, 1, 1, 1}, 256};
  const Where second = pinned_on(1);
  Block b = layer();
  b.operations[2].weight = &factors;
  b.operations[2].weight_decides = false;
  LayerPlacement placement = ffn_elsewhere(kPinned, second);
  placement.device = second;
  EXPECT_EQ(lanes(b, placement, {kPinned, second}), std::vector<Where>({kPinned, kPinned, second, second, second, second}));
  placement[Group::ffn_up] = kCpu;  // a neighbour that can run it goes first
  EXPECT_EQ(lanes(b, placement, {kPinned, kCpu})[2], kCpu);
  placement[Group::ffn_up] = kPinned;
  EXPECT_EQ(lanes(b, placement, {kPinned, kPinned})[2], second);
  b.operations[2].weight_is_viewed = true;
  EXPECT_EQ(lanes(b, placement, {kPinned, kPinned})[2], kPinned);
}

// What a split has not read before it, it may read without a split of its own.
TEST(Schedule, ACopiedWeightStartsASplitOnlyBehindOtherCopies) {
  const Block b = layer();
  LayerPlacement placement = LayerPlacement::uniform(kPinned);
  placement[Group::attention] = kCpu;
  Block large = b;
  large.operations[1].offload_rows = kOffloadMinTokens;
  large.operations[1].inputs = {1, kWeight, kNoValue, kNoValue, kNoValue, kNoValue, kNoValue, kNoValue};
  const BlockPlacement offloads{.layer = placement, .op_offload = true};
  for (const bool split_reads : {true, false}) {
    Neighbours around{kPinned, kPinned};
    around.split_reads = split_reads;
    const std::vector<ScheduledOperation> scheduled = schedule(large, offloads, around);
    EXPECT_TRUE(scheduled[1].copies_weight);
    EXPECT_EQ(scheduled[1].starts_split, split_reads);
    EXPECT_EQ(scheduled[0].split_reads, split_reads);
    EXPECT_TRUE(scheduled[1].split_reads);
  }
}

TEST(Schedule, NormsAreTiedToTheLayersDeviceWhereverTheirWeightsAre) {
  Block b = layer();
  b.operations[0].is_norm = true;
  LayerPlacement placement = LayerPlacement::uniform(kCpu);
  placement.device = pinned_on(1);
  EXPECT_EQ(schedule(b, {.layer = placement}, {})[0].device, Device::host);
  BlockPlacement tied{.layer = placement};
  tied.ties_norms = true;
  EXPECT_EQ(schedule(b, tied, {})[0].device, gpu_device(1));
}

// A view at the front opens no split of its own.
TEST(Schedule, ViewsAtTheFrontBelongToTheFirstOperation) {
  Block b = layer();
  b.values.push_back({});
  Operation view = operation({0}, 7);
  view.is_view = true;
  b.operations.insert(b.operations.begin(), view);
  const std::vector<ScheduledOperation> scheduled = schedule(b, {.layer = LayerPlacement::uniform(kPinned)}, {});
  EXPECT_TRUE(scheduled[0].starts_split);
  EXPECT_FALSE(scheduled[1].starts_split);
  EXPECT_EQ(scheduled[0].device, Device::gpu);
}

TEST(Schedule, InALayerThatStreamsTheyFollowTheirOperands) {
  const Block b = layer();
  const std::vector<Where> ffn_streamed{kPinned, kPinned, kPinned, kA, kA, kPinned};
  for (const Neighbours& neighbours : {Neighbours{}, Neighbours{kPinned, kPinned}, Neighbours{kB, kB}}) {
    EXPECT_EQ(lanes(b, ffn_elsewhere(kPinned, kA), neighbours), ffn_streamed);
  }
  EXPECT_EQ(lanes(b, ffn_elsewhere(kA, kCpu), {kCpu, kPinned}), std::vector<Where>({kA, kA, kA, kCpu, kCpu, kA}));
}

TEST(Schedule, WhatHasNoNameIsNotSeen) {
  Block b = layer();
  b.operations[4] = operation({4, 3}, 5);  // of two lanes: the layer's own
  EXPECT_EQ(lanes(b, ffn_elsewhere(kPinned, kA))[4], kPinned);
  b.values[3].is_named = false;
  EXPECT_EQ(lanes(b, ffn_elsewhere(kPinned, kA))[4], kA);
}

TEST(Schedule, OnlyWhatBelongsToNoLayerJoinsTheLaneBesideIt) {
  Block b = layer();
  EXPECT_EQ(lanes(b, LayerPlacement::uniform(kPinned), {kA, kB}), std::vector<Where>(6, kPinned));
  for (Operation& operation : b.operations) operation.group = Group::head;
  b.operations.resize(1);
  EXPECT_EQ(lanes(b, LayerPlacement::uniform(kPinned), {kB, kCpu}), std::vector<Where>{kB});
}

TEST(Schedule, ASplitGoesOnInTheLaneInWhichTheBlockBeforeEnds) {
  const Block b = layer();
  const BlockPlacement placement{.layer = LayerPlacement::uniform(kA)};
  for (const Where before : {kPinned, kA, kB, kCpu}) {
    const std::vector<ScheduledOperation> scheduled = schedule(b, placement, {before, kCpu});
    EXPECT_EQ(scheduled.front().starts_split, before != kA);
    for (size_t i = 1; i < scheduled.size(); ++i) EXPECT_FALSE(scheduled[i].starts_split);
  }
  EXPECT_EQ(block_ends(b, placement).first, kA);
  EXPECT_EQ(block_ends(b, placement).last, kA);
  EXPECT_EQ(block_ends(b, {.layer = ffn_elsewhere(kPinned, kCpu)}).last, kCpu);
}

}  // namespace
}  // namespace pshard
