#include "memory/replay.hpp"

#include <gtest/gtest.h>

#include <utility>

namespace pshard {
namespace {

const DataType kF16{1, 1, 2};

Operation operation(std::initializer_list<int32_t> inputs, int32_t output, bool in_place = false) {
  Operation result;
  result.output = output;
  if (in_place) result.overwrites = 1;
  size_t i = 0;
  for (const int32_t input : inputs) result.inputs.at(i++) = input;
  return result;
}

Block block(std::initializer_list<int64_t> value_bytes, std::vector<Operation> operations, int32_t residual_out) {
  Block result;
  for (const int64_t n_bytes : value_bytes) result.values.push_back(Value{.n_bytes = n_bytes});
  result.operations = std::move(operations);
  result.residual_in = 0;
  result.residual_out = residual_out;
  return result;
}

ReplayState residual_in(Where place, int64_t n_bytes) {
  ReplayState state(3);
  state.residual_home = place;
  state.residual_bytes = n_bytes;
  state.residual_offset = state.arena(place).allocate(n_bytes);
  return state;
}

int64_t gpu_bytes(const ReplayPeaks& peaks) { return peaks[index(Device::gpu)].bytes; }
int64_t host_bytes(const ReplayPeaks& peaks) { return peaks[index(Device::host)].bytes; }

ReplayPeaks run(const Block& b, Neighbours neighbours, ReplayState& state,
                const LayerPlacement& layer = LayerPlacement::uniform(Where::pinned), bool op_offload = false, bool pipeline = false) {
  const ScheduledBlock scheduled =
      schedule_block(b, {.layer = layer, .head = Where::cpu, .op_offload = op_offload, .ties_norms = false}, neighbours, {}, 0);
  ReplayOutlook outlook;
  outlook.pipeline = pipeline;
  return replay(scheduled, outlook, InputBytes{}, state);
}

constexpr Neighbours kGpu{Where::pinned, Where::pinned};

// 0 lives to the end; 1 is overwritten by 2; 3 comes behind both.
TEST(Replay, OverwritesWhatNobodyReadsAgain) {
  const Block b = block({1024, 2048, 2048, 512}, {operation({0}, 1), operation({1}, 2, true), operation({2, 0}, 3)}, 3);
  ReplayState state = residual_in(Where::pinned, 1024);
  const ReplayPeaks peaks = run(b, kGpu, state);
  EXPECT_EQ(gpu_bytes(peaks), 1024 + 2048 + 512);
  EXPECT_EQ(host_bytes(peaks), 0);
  EXPECT_EQ(state.residual_offset, 3072);
  EXPECT_EQ(state.arena(Where::pinned).extent(), 3584);
}

// Seen through a view, 1 is not overwritten: 2 lies behind it, and 3 falls into the hole that 1 leaves.
TEST(Replay, NeverOverwritesThroughAView) {
  Operation view = operation({1}, 4);
  view.is_view = true;
  const Block b = block({1024, 2048, 2048, 512, 2048}, {operation({0}, 1), view, operation({4}, 2, true), operation({2, 0}, 3)}, 3);
  ReplayState state = residual_in(Where::pinned, 1024);
  EXPECT_EQ(gpu_bytes(run(b, kGpu, state)), 1024 + 2048 + 2048);
  EXPECT_EQ(state.residual_offset, 1024);
}

TEST(Replay, CopiesAtASplitAndFreesTheOriginal) {
  const Block b = block({1024, 2048}, {operation({0}, 1)}, 1);
  ReplayState state = residual_in(Where::cpu, 1024);
  const ReplayPeaks peaks = run(b, kGpu, state);
  EXPECT_EQ(gpu_bytes(peaks), 1024 + 2048);
  EXPECT_EQ(state.arena(Where::cpu).extent(), 0);
  EXPECT_EQ(state.residual_home, Where::pinned);
}

// 0 crosses to the third GPU and is read there twice, by 1 and 2; it is free where it was as soon as the copy is made.
TEST(Replay, CopiesFromGpuToGpuOnce) {
  const Block b = block({1024, 512, 2048}, {operation({0}, 1), operation({0, 1}, 2)}, 2);
  const Device third = gpu_device(2);
  ReplayState state = residual_in(Where::pinned, 1024);
  const ReplayPeaks peaks = run(b, {pinned_on(2), pinned_on(2)}, state, LayerPlacement::uniform(pinned_on(2)));
  EXPECT_EQ(peaks[index(third)].bytes, 1024 + 512 + 2048);
  EXPECT_EQ(state.arena(Where::pinned).extent(), 0);
  EXPECT_EQ(state.residual_home, pinned_on(2));
}

// The same in a pipeline: four copies stay beside the arena, and nothing is written over them.
TEST(Replay, PipelineCopiesStay) {
  const Block b = block({1000, 1000}, {operation({0}, 1, true)}, 1);
  const Device second = gpu_device(1);
  ReplayState state = residual_in(Where::pinned, 1000);
  const ReplayPeaks peaks = run(b, {pinned_on(1), pinned_on(1)}, state, LayerPlacement::uniform(pinned_on(1)), false, true);
  EXPECT_EQ(peaks[index(second)].kept, 4 * 1024);
  EXPECT_EQ(peaks[index(second)].bytes, 1024);
  EXPECT_EQ(state.arena(Where::pinned).extent(), 0);
}

TEST(Replay, HostWeightsAreCopiedForOneOperationFromThirtyTwoRowsOn) {
  const Tensor weight{"blk.0.attn_q.weight", kF16, {64, 64, 1, 1}, 8192};
  for (const int64_t rows : {31, 32}) {
    Operation product = operation({kWeight, 0}, 1);
    product.kind = OpKind::mul_mat;
    product.group = Group::attention;
    product.weight = &weight;
    product.m = product.offload_rows = rows;
    const int64_t n_bytes = 64 * rows * 4;
    const Block b = block({n_bytes, n_bytes}, {product}, 1);
    ReplayState state = residual_in(Where::cpu, n_bytes);
    const ReplayPeaks peaks = run(b, {}, state, LayerPlacement::uniform(Where::cpu), true);
    EXPECT_EQ(gpu_bytes(peaks), rows < kOffloadMinTokens ? 0 : 8192 + 2 * n_bytes);
    EXPECT_EQ(host_bytes(peaks), rows < kOffloadMinTokens ? 2 * n_bytes : n_bytes);
  }
}

Operation product(Group group, const Tensor& weight, int32_t input, int32_t output) {
  Operation result = operation({input}, output);
  result.kind = OpKind::mul_mat;
  result.group = group;
  result.weight = &weight;
  return result;
}

// Two streamed products in two lanes: while the first runs, the second's weights arrive.
TEST(Replay, StreamedWeightsAreThereOneSplitAhead) {
  const Tensor first{"blk.0.attn_q.weight", kF16, {64, 64, 1, 1}, 8192};
  const Tensor second{"blk.0.ffn_up.weight", kF16, {64, 128, 1, 1}, 16384};
  const Block b = block({256, 256, 512}, {product(Group::attention, first, 0, 1), product(Group::ffn_up, second, 1, 2)}, 2);
  LayerPlacement layer = LayerPlacement::uniform(Where::stream_a);
  layer[Group::ffn_up] = Where::stream_b;
  const ScheduledBlock scheduled =
      schedule_block(b, {.layer = layer, .head = Where::cpu, .op_offload = false, .ties_norms = false}, kGpu, {}, 0);
  ASSERT_EQ(scheduled.streamed.size(), 2U);
  EXPECT_EQ(scheduled.streamed[0].n_bytes(), 8192);
  EXPECT_EQ(scheduled.streamed[1].n_bytes(), 16384);
  EXPECT_EQ(scheduled.last_lane, Where::stream_b);
  ReplayState state = residual_in(Where::pinned, 256);
  state.next.weights = {state.arena(Where::pinned).allocate(8192)};  // by the block before
  ReplayOutlook outlook;
  outlook.last = &scheduled.streamed[1];
  const StreamedCopies behind{.weights = {{.reader = 0, .n_bytes = 4096}}, .cache_bytes = {1024}};
  outlook.behind = &behind;  // arrives when the second split starts: the residual and the first weight are gone
  const ReplayPeaks peaks = replay(scheduled, outlook, InputBytes{}, state);
  EXPECT_EQ(gpu_bytes(peaks), 256 + 8192 + 16384 + 256);
  ASSERT_EQ(state.next.weights.size(), 1U);
  EXPECT_EQ(state.next.weights.front(), 0);
  ASSERT_EQ(state.next.caches.size(), 1U);
  EXPECT_EQ(state.next.caches.front().offset, 4096);
}

// The slot of a streamed cache is free again when the next split starts, not when attention has read it.
TEST(Replay, StreamedCachesStayToTheEndOfTheSplit) {
  const Tensor query{"blk.0.attn_q.weight", kF16, {64, 64, 1, 1}, 8192};
  std::vector<Operation> operations{product(Group::attention, query, 0, 1), operation({1}, 2), operation({2}, 3)};
  operations[1].group = Group::cache;
  operations[1].cache_bytes = 2048;
  const Block b = block({256, 256, 256, 4096}, operations, 3);
  const BlockPlacement placement{
      .layer = LayerPlacement::uniform(Where::stream_a), .head = Where::cpu, .op_offload = false, .ties_norms = false};
  const ScheduledBlock scheduled = schedule_block(b, placement, kGpu, {1024, 1024}, 0);
  ASSERT_EQ(scheduled.streamed.size(), 1U);
  EXPECT_EQ(scheduled.streamed[0].cache_bytes, std::vector<int64_t>({1024, 1024}));
  ReplayState state = residual_in(Where::pinned, 256);
  state.next.weights = {state.arena(Where::pinned).allocate(8192)};
  state.next.caches = {{.offset = state.arena(Where::pinned).allocate(2048), .n_bytes = 2048}};
  // The last value fits into the weight's place, so the extent is what the slot keeps.
  EXPECT_EQ(gpu_bytes(replay(scheduled, {}, InputBytes{}, state)), 256 + 8192 + 2048 + 256);
  EXPECT_EQ(state.arena(Where::pinned).extent(), 256 + 8192 + 2048);
  const ScheduledBlock behind = schedule_block(b, {.layer = LayerPlacement::uniform(Where::cpu)}, {Where::stream_a, Where::cpu}, {}, 0);
  static_cast<void>(replay(behind, {}, InputBytes{}, state));
  EXPECT_EQ(state.arena(Where::pinned).extent(), 0);
}

Block with_input(GraphInput input, int64_t n_bytes) {
  Block b = block({256, n_bytes, 256, 256}, {operation({0, 1}, 2), operation({2, 1}, 3)}, 3);
  b.values[1].is_input = true;
  b.values[1].input = input;
  return b;
}

InputBytes input_bytes(GraphInput input, int64_t n_bytes) {
  InputBytes bytes{};
  bytes[static_cast<size_t>(input)] = n_bytes;
  return bytes;
}

// Positions that one lane has read are copied again for the other.
TEST(Replay, EachLaneHasItsOwnInputs) {
  const Block b = with_input(GraphInput::positions, 512);
  ReplayState state = residual_in(Where::pinned, 256);
  for (const Where lane : {Where::stream_a, Where::stream_b}) {
    const ScheduledBlock scheduled = schedule_block(b, {.layer = LayerPlacement::uniform(lane)}, kGpu, {}, 0);
    EXPECT_EQ(scheduled.inputs[lane], input_bit(GraphInput::positions));
    EXPECT_EQ(scheduled.inputs[Where::pinned], 0U);
    static_cast<void>(replay(scheduled, {}, input_bytes(GraphInput::positions, 512), state));
  }
  EXPECT_EQ(state.arena(Where::pinned).extent(), 2 * 512 + 256);
}

// An f32 mask and its cast are there together once; then the cast stays.
TEST(Replay, MasksAreCastByTheirFirstReader) {
  constexpr int64_t mask_bytes = 4096;
  const Block b = with_input(GraphInput::mask, mask_bytes);
  for (const bool casts : {false, true}) {
    const ScheduledBlock scheduled =
        schedule_block(b, {.layer = LayerPlacement::uniform(Where::pinned)}, kGpu, {}, casts ? input_bit(GraphInput::mask) : 0);
    ReplayState state = residual_in(Where::pinned, 256);
    const ReplayPeaks peaks = replay(scheduled, {}, input_bytes(GraphInput::mask, mask_bytes), state);
    EXPECT_EQ(gpu_bytes(peaks), 256 + (casts ? 3 : 1) * mask_bytes + (casts ? 0 : 256));
    EXPECT_EQ(state.uncast, 0U);
  }
}

}  // namespace
}  // namespace pshard
