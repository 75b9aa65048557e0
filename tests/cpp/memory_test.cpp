#include "memory/memory.hpp"

#include <gtest/gtest.h>

#include "memory/compute_buffers.hpp"
#include "tiny_model.hpp"

namespace pshard {
namespace {

Placement everywhere(Where where) {
  Placement placement;
  placement.patterns = {LayerPlacement::uniform(where)};
  placement.layer_pattern = {0, 0};
  placement.head = where == Where::cpu ? Where::cpu : Where::pinned;
  return placement;
}

TEST(CacheCells, ArePaddedPerStream) {
  const Model model = tiny::model();
  ContextParameters context;
  context.n_ctx = 5000;
  EXPECT_EQ(cache_cells(model, context).full, 5120);
  context.n_ctx = 10000;
  context.n_seq_max = 3;
  EXPECT_EQ(cache_cells(model, context).full, 3584);
  EXPECT_EQ(cache_cells(model, context).n_streams, 3);
  context.kv_unified = true;
  EXPECT_EQ(cache_cells(model, context).full, 10240);
  EXPECT_EQ(cache_cells(model, context).n_streams, 1);
}

TEST(CacheCells, OfAWindowHoldTheWindowAndOneMicroBatch) {
  const Model model = tiny::model(1000);
  ContextParameters context;
  context.n_ctx = 16384;
  EXPECT_EQ(cache_cells(model, context).window, 1536);  // 1000 + 512
  context.n_batch = 64;
  EXPECT_EQ(cache_cells(model, context).window, 1280);  // 1000 + 64
  context.n_batch = 2048;
  context.n_seq_max = 4;
  context.kv_unified = true;
  EXPECT_EQ(cache_cells(model, context).window, 4608);  // 4 x 1000 + 512
  context.swa_full = true;
  EXPECT_EQ(cache_cells(model, context).window, 16384);
}

TEST(CacheCells, NeedPositiveSettings) {
  ContextParameters context;
  context.n_ctx = 0;
  EXPECT_THROW(static_cast<void>(cache_cells(tiny::model(), context)), std::invalid_argument);
}

TEST(CacheBytes, CountKeysAndValuesPerCell) {
  const Model model = tiny::model();
  ContextParameters context;
  context.n_ctx = 1024;
  EXPECT_EQ(cache_bytes(model, model.layers()[0], context), 1024 * 2 * 2 * 64 * 2);
  context.type_k = DataType{8, 32, 34};  // on a GPU, rows of 128 elements are padded to 512 behind the last
  EXPECT_EQ(cache_bytes(model, model.layers()[0], context), 1024 * 4 * 34 + 512 + 1024 * 2 * 64 * 2);
  EXPECT_EQ(cache_bytes(model, model.layers()[0], context, Where::cpu), 1024 * 4 * 34 + 1024 * 2 * 64 * 2);
}

TEST(ReservedPass, HasAsManyOutputsAsMayBeWanted) {
  const Model model = tiny::model();
  ContextParameters context;
  EXPECT_EQ(reserved_pass(model, context, 64).n_outputs, 64);
  context.n_outputs_max = 4;
  EXPECT_EQ(reserved_pass(model, context, 64).n_outputs, 4);
  EXPECT_EQ(reserved_pass(model, context, 2).n_outputs, 2);
}

TEST(TensorBytes, QuantisedRowsArePaddedOnTheGpu) {
  const Tensor tensor{"blk.0.ffn_up.weight", DataType{8, 32, 34}, {96, 4, 1, 1}, 4 * 3 * 34};
  EXPECT_EQ(gpu_tensor_bytes(tensor), 896);  // 408 + 13 blocks of 34 behind it = 850, in units of 128
  EXPECT_EQ(host_tensor_bytes(tensor), 416);
}

TEST(Memory, WeightsAreSomewhereOnce) {
  const Model model = tiny::model();
  ContextParameters context;
  const MemoryReport gpu = memory(model, everywhere(Where::pinned), context, 64);
  const MemoryReport host = memory(model, everywhere(Where::cpu), context, 64);
  constexpr int64_t kLayers = 2 * (tiny::kLayerWeights + 2 * tiny::kEmbd) * 2;
  EXPECT_EQ(gpu.gpu().weights_bytes, kLayers + tiny::kEmbd * 2 + tiny::kEmbd * tiny::kVocab * 2);
  EXPECT_EQ(gpu.host.weights_bytes, tiny::kEmbd * tiny::kVocab * 2);
  EXPECT_EQ(host.gpu().weights_bytes, 0);
  EXPECT_EQ(host.host.weights_bytes, gpu.gpu().weights_bytes + gpu.host.weights_bytes);
  EXPECT_EQ(host.gpu().cache_bytes, 0);
  EXPECT_EQ(host.host.cache_bytes, gpu.gpu().cache_bytes);
  EXPECT_EQ(host.gpu().compute_bytes, 0);
}

TEST(Memory, AnExceptionMovesOneTensor) {
  const Model model = tiny::model();
  Placement placement = everywhere(Where::pinned);
  const MemoryReport before = memory(model, placement, {}, 64);
  placement.exceptions = {{"blk.1.ffn_up.weight", Where::cpu}};
  const MemoryReport after = memory(model, placement, {}, 64);
  constexpr int64_t kBytes = tiny::kEmbd * tiny::kFfn * 2;
  EXPECT_EQ(before.gpu().weights_bytes - after.gpu().weights_bytes, kBytes);
  EXPECT_EQ(after.host.weights_bytes - before.host.weights_bytes, kBytes);
}

TEST(Memory, AnExceptionOutsideTheLayersMovesOneTensor) {
  const Model model = tiny::model();
  Placement placement = everywhere(Where::pinned);
  placement.n_gpu = 2;
  const MemoryReport before = memory(model, placement, {}, 64);
  placement.exceptions = {{"output_norm.weight", Where::cpu}, {"token_embd.weight", pinned_on(1)}};
  const MemoryReport after = memory(model, placement, {}, 64);
  constexpr int64_t kNorm = tiny::kEmbd * 2, kEmbedding = tiny::kEmbd * tiny::kVocab * 2;
  EXPECT_EQ(before.gpus[0].weights_bytes - after.gpus[0].weights_bytes, kNorm);
  EXPECT_EQ(after.gpus[1].weights_bytes, kEmbedding);
  EXPECT_EQ(after.host.weights_bytes - before.host.weights_bytes, kNorm - kEmbedding);
  EXPECT_GT(after.gpus[1].compute_bytes, 0);
}

TEST(Memory, EveryGpuHasWhatIsPinnedOnIt) {
  const Model model = tiny::model();
  Placement placement = everywhere(Where::pinned);
  placement.n_gpu = 3;
  placement.patterns.push_back(LayerPlacement::uniform(pinned_on(2)));
  placement.layer_pattern = {0, static_cast<uint8_t>(placement.patterns.size() - 1)};
  placement.head = pinned_on(2);
  const MemoryReport report = memory(model, placement, {}, 64);
  constexpr int64_t kLayer = (tiny::kLayerWeights + 2 * tiny::kEmbd) * 2;
  ASSERT_EQ(report.gpus.size(), 3U);
  EXPECT_EQ(report.gpus[0].weights_bytes, kLayer);
  EXPECT_EQ(report.gpus[1].total(), 0);
  EXPECT_EQ(report.gpus[2].weights_bytes, kLayer + tiny::kEmbd * 2 + tiny::kEmbd * tiny::kVocab * 2);
  EXPECT_EQ(report.gpus[0].cache_bytes, report.gpus[2].cache_bytes);
  placement.n_gpu = 2;
  EXPECT_THROW(static_cast<void>(memory(model, placement, {}, 64)), std::invalid_argument);
}

TEST(Memory, RefusesAnotherNumberOfLayers) {
  Placement placement = everywhere(Where::pinned);
  placement.layer_pattern.push_back(0);
  EXPECT_THROW(static_cast<void>(memory(tiny::model(), placement, {}, 64)), std::invalid_argument);
}

TEST(ComputeBuffers, AreRepeatableAndReplayedOncePerState) {
  const Model model = tiny::model();
  ComputeBuffers compute(model, {}, 64);
  const Placement placement = everywhere(Where::pinned);
  const ComputeBytes first = compute(placement);
  const int64_t n_replays = compute.n_replays();
  EXPECT_EQ(n_replays, 4);  // embedding, two layers, head
  const ComputeBytes second = compute(placement);
  EXPECT_EQ(compute.n_replays(), n_replays);
  EXPECT_EQ(first.gpu_bytes, second.gpu_bytes);
  EXPECT_EQ(first.gpu_bytes, ComputeBuffers(model, {}, 64)(placement).gpu_bytes);
}

TEST(ComputeBuffers, StreamingNeedsSlotsForTwoLayersInTurn) {
  const Model model = tiny::model();
  ContextParameters context;
  context.n_ctx = 1024;
  Placement placement;
  placement.patterns = {LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  placement.layer_pattern = {0, 1};
  const ComputeBytes compute = ComputeBuffers(model, context, 64)(placement);
  int64_t layer_bytes = cache_bytes(model, model.layers()[0], context);
  for (const Tensor& tensor : model.layers()[0].tensors) layer_bytes += gpu_tensor_bytes(tensor);
  EXPECT_EQ(compute.gpu_stream_bytes, 2 * layer_bytes);
  EXPECT_GT(compute.gpu_bytes.front(), compute.gpu_stream_bytes);
}

}  // namespace
}  // namespace pshard
