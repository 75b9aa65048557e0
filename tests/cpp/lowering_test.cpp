#include "cost/lowering.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "memory/memory.hpp"
#include "planning_cases.hpp"

namespace pshard {
namespace {

using cases::kAttentionBytes;
using cases::kCellBytes;
using cases::kExpertTensorBytes;
using cases::kFfnBytes;
using cases::kNormBytes;
using cases::kRouterBytes;

constexpr double kRowBytes = 4'000;  // one token of the residual
constexpr double kLayerBytes = kNormBytes + kAttentionBytes + kFfnBytes;
constexpr double kLink = 1e-9;  // seconds per byte

Pass pass(int64_t n_tokens) {
  Pass p;
  p.n_tokens = n_tokens;
  p.n_outputs = 1;
  p.n_kv = 512;
  return p;
}

LayerPlacement with(LayerPlacement placement, std::initializer_list<Group> groups, Where where) {
  for (const Group group : groups) placement[group] = where;
  return placement;
}

const LayerPlacement kPinned = LayerPlacement::uniform(Where::pinned);
const LayerPlacement kCpu = LayerPlacement::uniform(Where::cpu);
const LayerPlacement kFfnOnCpu = with(kPinned, {Group::ffn_up, Group::ffn_gate, Group::ffn_down}, Where::cpu);
constexpr Neighbours kGpuAround{Where::pinned, Where::pinned};
constexpr Neighbours kHostAround{Where::cpu, Where::cpu};

struct Case {
  bool with_experts = false;
  bool op_offload = false;
  Neighbours neighbours = kGpuAround;
  Machine machine = cases::machine();
};

LoweredBlock lowered(const LayerPlacement& placement, int64_t n_tokens, const Case& c = {}) {
  const Model model = cases::model(2, c.with_experts);
  const PricedBlock priced = price_block(model, c.machine, pass(n_tokens), layer_block(model, model.layers()[0], pass(n_tokens), false));
  return lower(priced, model, c.machine, {.layer = placement, .head = Where::cpu, .op_offload = c.op_offload}, c.neighbours,
               c.neighbours.before == Where::cpu ? Device::host : Device::gpu);
}

Segment sum(const LoweredBlock& block) {
  Segment total;
  for (const Segment& s : block.segments) {
    total.compute += s.compute;
    total.dram_bytes += s.dram_bytes;
    total.prefetch_bytes += s.prefetch_bytes;
    total.prefetch_seconds += s.prefetch_seconds;
    total.exposed_bytes += s.exposed_bytes;
    total.exposed_seconds += s.exposed_seconds;
    total.write_back_bytes += s.write_back_bytes;
    total.activation_up_bytes += s.activation_up_bytes;
    total.activation_down_bytes += s.activation_down_bytes;
  }
  return total;
}

TEST(Lower, AResidentLayerMovesNothing) {
  const LoweredBlock block = lowered(kPinned, 1);
  ASSERT_EQ(block.segments.size(), 1u);
  EXPECT_EQ(block.segments[0].backend, Where::pinned);
  EXPECT_EQ(block.residual, Device::gpu);
  const Segment total = sum(block);
  for (const double moved : {total.prefetch_bytes, total.exposed_bytes, total.write_back_bytes, total.activation_up_bytes,
                             total.activation_down_bytes, total.dram_bytes}) {
    EXPECT_DOUBLE_EQ(moved, 0.0);
  }
}

TEST(Lower, AResidentLayerIsTheSumOfItsOperations) {
  // 1 TB/s: the seven products read 16.8 MB of weights, and in and out (1000 + 1000) x 3 + (1000 + 200) x 2 ... floats; everything
  // else moves bytes at the same rate, so the layer takes (weights + cache + activations) / rate. What stays in a kernel is neither written
  // nor read: norms before their weights, products before residuals are added, gate and up, and keys before they are stored.
  const Model model = cases::model(2);
  const Block block = layer_block(model, model.layers()[0], pass(1), false);
  double bytes = 0.0;
  for (const Operation& operation : block.operations) {
    if (!operation.is_view) bytes += static_cast<double>(operation.activation_bytes + operation.cache_bytes);
  }
  const double seconds = sum(lowered(kPinned, 1)).compute.seconds;
  const double inner_bytes = 2 * 4.0 * (2 * 1000 + 2 * 1000 + 2 * 2000 + 200);
  EXPECT_NEAR(seconds, (kLayerBytes + bytes - inner_bytes) / 1e12, 1e-15);
  EXPECT_LT(bytes, 0.05 * kLayerBytes);
}

TEST(Lower, AKernelIsLaunchedOnce) {
  // 19 operations in 12 kernels; with the FFN on the CPU gate, up, their activation and down leave, and the sum behind is one again.
  Case c;
  const double without = sum(lowered(kPinned, 1, c)).compute.seconds;
  const double without_ffn = sum(lowered(kFfnOnCpu, 1, c)).compute.seconds;
  c.machine.gpu.op_seconds = 1.0;
  EXPECT_NEAR(sum(lowered(kPinned, 1, c)).compute.seconds - without, 12.0, 1e-9);
  EXPECT_NEAR(sum(lowered(kFfnOnCpu, 1, c)).compute.seconds - without_ffn, 11.0, 1e-9);
  EXPECT_NEAR(sum(lowered(kPinned, 2, c)).compute.seconds, 16.0, 1e-3);  // no product of several rows adds or gates
}

TEST(Lower, AStreamedLayerBringsItsWeightsAndCacheBeforeItStarts) {
  const LoweredBlock block = lowered(LayerPlacement::uniform(Where::stream_b), 3);
  ASSERT_EQ(block.segments.size(), 1u);
  const Segment& split = block.segments[0];
  EXPECT_EQ(split.backend, Where::stream_b);
  EXPECT_DOUBLE_EQ(split.prefetch_bytes, kLayerBytes + 512 * kCellBytes);
  EXPECT_NEAR(split.prefetch_seconds, split.prefetch_bytes * kLink, 1e-15);
  EXPECT_DOUBLE_EQ(split.write_back_bytes, 3 * kCellBytes);  // what the three tokens wrote
  EXPECT_DOUBLE_EQ(split.exposed_bytes, 0.0);
}

TEST(Lower, CopiesPayTheirChunk) {
  // Tensors are copied one by one: nine weights, K/V in one copy up, K and V down; each with its set-up.
  Case c;
  c.machine.up.latency_seconds = 1.0;
  c.machine.down.latency_seconds = 1.0;
  const LoweredBlock block = lowered(LayerPlacement::uniform(Where::stream_a), 1, c);
  EXPECT_NEAR(block.segments[0].prefetch_seconds, 10.0, 0.1);
  EXPECT_NEAR(block.segments[0].write_back_seconds, 2.0, 1e-3);
}

TEST(Lower, FfnOnTheCpuCostsTwoActivations) {
  const LoweredBlock block = lowered(kFfnOnCpu, 4);
  ASSERT_EQ(block.segments.size(), 3u);
  EXPECT_EQ(block.segments[1].backend, Where::cpu);
  EXPECT_DOUBLE_EQ(block.segments[1].activation_down_bytes, 4 * kRowBytes);  // the normed input, once for gate and up
  EXPECT_DOUBLE_EQ(block.segments[2].activation_up_bytes, 4 * kRowBytes);    // the result, for the residual addition
  EXPECT_DOUBLE_EQ(block.segments[1].dram_bytes, kFfnBytes);
  EXPECT_DOUBLE_EQ(sum(block).prefetch_bytes + sum(block).exposed_bytes, 0.0);
  EXPECT_EQ(block.residual, Device::gpu);
}

TEST(Lower, ACpuLayerReadsWeightsAndCacheFromHostMemory) {
  const Segment total = sum(lowered(kCpu, 1, {.neighbours = kHostAround}));
  // Three cells: two stores (K and V of one token) and the 512 cells that attention reads.
  EXPECT_DOUBLE_EQ(total.dram_bytes, kLayerBytes + 513 * kCellBytes);
  EXPECT_DOUBLE_EQ(total.activation_up_bytes + total.activation_down_bytes, 0.0);
}

TEST(Lower, OpOffloadBeginsAt32Tokens) {
  const Case c{.op_offload = true, .neighbours = kHostAround};
  const Segment below = sum(lowered(kCpu, 31, c));
  EXPECT_DOUBLE_EQ(below.exposed_bytes, 0.0);
  EXPECT_DOUBLE_EQ(below.dram_bytes, kLayerBytes + (512 + 31) * kCellBytes);
  const Segment at = sum(lowered(kCpu, 32, c));
  EXPECT_GE(at.exposed_bytes, kLayerBytes);
  EXPECT_LE(at.exposed_bytes, kLayerBytes + 512 * kCellBytes);  // and the cache, where attention follows to the GPU
  EXPECT_LT(at.dram_bytes, (512 + 32) * kCellBytes + 1);        // no weights
  EXPECT_DOUBLE_EQ(at.prefetch_bytes, 0.0);
  const Segment without = sum(lowered(kCpu, 32, {.neighbours = kHostAround}));
  EXPECT_DOUBLE_EQ(without.exposed_bytes, 0.0);
}

const LayerPlacement kExpertsOnCpu = with(kPinned, {Group::experts_up, Group::experts_gate, Group::experts_down}, Where::cpu);

TEST(Lower, OpOffloadCopiesOnlyTheExpertsThatAreUsed) {
  // The threshold counts tokens, not routes: 16 tokens make 32 routes and stay on the CPU.
  EXPECT_DOUBLE_EQ(sum(lowered(kExpertsOnCpu, 16, {.with_experts = true, .op_offload = true})).exposed_bytes, 0.0);
  const double share = 1.0 - std::pow(0.75, 32);
  const Segment total = sum(lowered(kExpertsOnCpu, 32, {.with_experts = true, .op_offload = true}));
  EXPECT_NEAR(total.exposed_bytes, 3 * kExpertTensorBytes * share, 1.0);
}

TEST(Lower, SlicesRunOverNeighboursAndWaitForTheRouting) {
  Case c{.with_experts = true};
  c.machine.handoff_to_cpu_seconds = 1.0;
  c.machine.up = {{1e6, 4e6}, {1e9, 2e9}, 0.0, 2e9, Basis::measured, 0.0};
  const LayerPlacement placement = with(kPinned, {Group::experts_up, Group::experts_gate, Group::experts_down}, Where::stream_a);
  const LoweredBlock block = lowered(placement, 1, c);
  const Segment* streamed = nullptr;
  for (const Segment& s : block.segments) {
    if (s.experts_whole_bytes > 0) streamed = &s;
  }
  ASSERT_NE(streamed, nullptr);
  EXPECT_TRUE(streamed->experts_can_slice);  // the router is resident, so its answer is known
  EXPECT_DOUBLE_EQ(streamed->experts_whole_bytes, 3 * kExpertTensorBytes);
  EXPECT_NEAR(streamed->experts_whole_seconds, 3 * kExpertTensorBytes / 2e9, 1e-12);
  EXPECT_DOUBLE_EQ(streamed->experts_sliced_bytes, 3 * kExpertTensorBytes / 4);
  // A quarter of the experts of 1 MB: runs of 1 / (1 - 1/4) = 4/3 MB, copied at 2^(log(4/3) / log 4) GB/s; three hand-offs.
  const double rate = 1e9 * std::pow(2.0, std::log(4.0 / 3.0) / std::log(4.0));
  EXPECT_NEAR(streamed->experts_sliced_seconds, 3 * (kExpertTensorBytes / 4 / rate + 1.0), 1e-9);
}

TEST(Lower, ARouterInTheSameSplitForbidsSlices) {
  const LoweredBlock block = lowered(LayerPlacement::uniform(Where::stream_a), 1, {.with_experts = true});
  ASSERT_EQ(block.segments.size(), 1u);
  EXPECT_FALSE(block.segments[0].experts_can_slice);
  EXPECT_DOUBLE_EQ(block.segments[0].prefetch_bytes, kNormBytes + kAttentionBytes + kRouterBytes + 512 * kCellBytes);
}

TEST(Head, MultipliesOnlyTheRowsThatAreWanted) {
  const Model model = cases::model(1);
  const auto flop = [&](int64_t n_outputs) {
    Pass p = pass(512);
    p.n_outputs = n_outputs;
    double total = 0.0;
    for (const Operation& operation : head_block(model, p).operations) {
      if (operation.kind == OpKind::mul_mat) total += operation.flop;
    }
    return total;
  };
  EXPECT_DOUBLE_EQ(flop(1), 2.0 * 1000 * 5000);
  EXPECT_DOUBLE_EQ(flop(512), 512 * 2.0 * 1000 * 5000);
}

TEST(LastLayer, DropsUnwantedRowsBeforeItsFfn) {
  const Model model = cases::model(1);
  const auto ffn_flop = [&](bool is_last) {
    double total = 0.0;
    for (const Operation& operation : layer_block(model, model.layers()[0], pass(512), is_last).operations) {
      if (operation.weight != nullptr && operation.group == Group::ffn_up) total += operation.flop;
    }
    return total;
  };
  EXPECT_DOUBLE_EQ(ffn_flop(false), 512 * 2.0 * 1000 * 2000);
  EXPECT_DOUBLE_EQ(ffn_flop(true), 2.0 * 1000 * 2000);
}

TEST(HostHomeBytes, CountsWhatIsNotResident) {
  const Model model = cases::model(2);
  const Machine machine = cases::machine();
  const PricedBlock priced = price_block(model, machine, pass(1), layer_block(model, model.layers()[0], pass(1), false));
  const auto home = [&](const LayerPlacement& placement) {
    return static_cast<double>(host_home_bytes(priced, {.layer = placement, .head = Where::cpu, .op_offload = false}));
  };
  EXPECT_DOUBLE_EQ(home(kPinned), 0.0);
  EXPECT_DOUBLE_EQ(home(kFfnOnCpu), kFfnBytes);
  EXPECT_DOUBLE_EQ(home(LayerPlacement::uniform(Where::stream_a)), kLayerBytes);
}

}  // namespace
}  // namespace pshard
