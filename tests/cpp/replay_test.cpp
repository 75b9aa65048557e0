#include "memory/replay.hpp"

#include <gtest/gtest.h>

#include <utility>

namespace pshard {
namespace {

const DataType kF16{1, 1, 2};

Operation operation(std::initializer_list<int32_t> inputs, int32_t output, bool in_place = false) {
  Operation result;
  result.output = output;
  result.in_place = in_place;
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

ReplayState residual_on(Device device, int64_t n_bytes) {
  ReplayState state;
  state.residual_device = device;
  state.residual_bytes = n_bytes;
  state.residual_offset = (device == Device::gpu ? state.gpu : state.host).allocate(n_bytes);
  return state;
}

ReplayPeaks run(const Block& b, Neighbours neighbours, ReplayState& state,
                const LayerPlacement& layer = LayerPlacement::uniform(Where::pinned), bool op_offload = false) {
  const ScheduledBlock scheduled = schedule_block(b, {.layer = layer, .outside = Where::cpu, .op_offload = op_offload}, neighbours, 0);
  return replay(scheduled, {}, InputBytes{}, 0, state);
}

constexpr Neighbours kGpu{Device::gpu, Device::gpu};

// 0 lives to the end; 1 is overwritten by 2; 3 comes behind both.
TEST(Replay, OverwritesWhatNobodyReadsAgain) {
  const Block b = block({1024, 2048, 2048, 512}, {operation({0}, 1), operation({1}, 2, true), operation({2, 0}, 3)}, 3);
  ReplayState state = residual_on(Device::gpu, 1024);
  const ReplayPeaks peaks = run(b, kGpu, state);
  EXPECT_EQ(peaks.gpu_bytes, 1024 + 2048 + 512);
  EXPECT_EQ(peaks.host_bytes, 0);
  EXPECT_EQ(state.residual_offset, 3072);
  EXPECT_EQ(state.gpu.extent(), 3584);
}

// Seen through a view, 1 is not overwritten: 2 lies behind it, and 3 falls into the hole that 1 leaves.
TEST(Replay, NeverOverwritesThroughAView) {
  Operation view = operation({1}, 4);
  view.is_view = true;
  const Block b = block({1024, 2048, 2048, 512, 2048}, {operation({0}, 1), view, operation({4}, 2, true), operation({2, 0}, 3)}, 3);
  ReplayState state = residual_on(Device::gpu, 1024);
  EXPECT_EQ(run(b, kGpu, state).gpu_bytes, 1024 + 2048 + 2048);
  EXPECT_EQ(state.residual_offset, 1024);
}

TEST(Replay, CopiesAtASplitAndFreesTheOriginal) {
  const Block b = block({1024, 2048}, {operation({0}, 1)}, 1);
  ReplayState state = residual_on(Device::host, 1024);
  const ReplayPeaks peaks = run(b, kGpu, state);
  EXPECT_EQ(peaks.gpu_bytes, 1024 + 2048);
  EXPECT_EQ(state.host.extent(), 0);
  EXPECT_EQ(state.residual_device, Device::gpu);
}

TEST(Replay, HostWeightsAreCopiedForOneOperationFromThirtyTwoRowsOn) {
  const Tensor weight{"blk.0.attn_q.weight", kF16, {64, 64, 1, 1}, 8192};
  for (const int64_t rows : {31, 32}) {
    Operation product = operation({0}, 1);
    product.kind = OpKind::mul_mat;
    product.group = Group::attention;
    product.weight = &weight;
    product.m = product.offload_rows = rows;
    const int64_t n_bytes = 64 * rows * 4;
    const Block b = block({n_bytes, n_bytes}, {product}, 1);
    ReplayState state = residual_on(Device::host, n_bytes);
    const ReplayPeaks peaks = run(b, {}, state, LayerPlacement::uniform(Where::cpu), true);
    EXPECT_EQ(peaks.gpu_bytes, rows < kOffloadMinTokens ? 0 : 8192 + 2 * n_bytes);
    EXPECT_EQ(peaks.host_bytes, rows < kOffloadMinTokens ? 2 * n_bytes : 0);
  }
}

// Two streamed products in two lanes: while the first runs, the second's weights arrive.
TEST(Replay, StreamedWeightsAreThereOneSplitAhead) {
  const Tensor first{"blk.0.attn_q.weight", kF16, {64, 64, 1, 1}, 8192};
  const Tensor second{"blk.0.ffn_up.weight", kF16, {64, 128, 1, 1}, 16384};
  std::vector<Operation> operations{operation({0}, 1), operation({1}, 2)};
  operations[0].kind = operations[1].kind = OpKind::mul_mat;
  operations[0].group = Group::attention;
  operations[1].group = Group::ffn_up;
  operations[0].weight = &first;
  operations[1].weight = &second;
  const Block b = block({256, 256, 512}, operations, 2);
  LayerPlacement layer = LayerPlacement::uniform(Where::stream_a);
  layer[Group::ffn_up] = Where::stream_b;
  const ScheduledBlock scheduled = schedule_block(b, {.layer = layer, .outside = Where::cpu, .op_offload = false}, kGpu, 0);
  ASSERT_EQ(scheduled.streamed.size(), 2U);
  EXPECT_EQ(scheduled.streamed[0].front().n_bytes, 8192);
  EXPECT_EQ(scheduled.streamed[1].front().n_bytes, 16384);
  EXPECT_TRUE(scheduled.ends_streamed);
  ReplayState state = residual_on(Device::gpu, 256);
  state.streamed = {state.gpu.allocate(8192)};  // by the block before
  ReplayOutlook outlook;
  const StreamedCopies behind{{.last_reader = 0, .n_bytes = 4096}};
  outlook.streamed = &behind;  // for the block behind, when the second split starts: the residual and the first weight are gone
  const ReplayPeaks peaks = replay(scheduled, outlook, InputBytes{}, 0, state);
  EXPECT_EQ(peaks.gpu_bytes, 256 + 8192 + 16384 + 256);
  ASSERT_EQ(state.streamed.size(), 1U);
  EXPECT_EQ(state.streamed.front(), 0);
}

// An f32 mask and its cast are there together once; then the cast stays.
TEST(Replay, MasksAreCastByTheirFirstReader) {
  constexpr int64_t mask_bytes = 4096;
  std::vector<Operation> operations{operation({0, 1}, 2), operation({2, 1}, 3)};
  Block b = block({256, mask_bytes, 256, 256}, operations, 3);
  b.values[1].is_input = true;
  b.values[1].input = GraphInput::mask;
  const ScheduledBlock scheduled = schedule_block(b, {.layer = LayerPlacement::uniform(Where::pinned)}, kGpu, 0);
  for (const bool casts : {false, true}) {
    ReplayState state = residual_on(Device::gpu, 256);
    const ReplayPeaks peaks = replay(scheduled, {}, InputBytes{}, casts ? input_bit(GraphInput::mask) : 0, state);
    EXPECT_EQ(peaks.gpu_bytes, 256 + (casts ? 3 : 1) * mask_bytes + (casts ? 0 : 256));
    EXPECT_EQ(state.uncast, 0U);
  }
}

}  // namespace
}  // namespace pshard
