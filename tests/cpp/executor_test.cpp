#include "stream/executor.hpp"

#include <gtest/gtest.h>

#include <set>

#include "stream_cases.hpp"

namespace pshard {
namespace {

using namespace stream_cases;

// Everything that is moved and multiplied is checked: what is missing, early or overwritten throws.
struct Running {
  Running(const Model& model, const Placement& where, int64_t n_tokens, const ExecutorOptions& options, int n_devices = 1)
      : schedules{schedule(model, where, n_tokens)},
        source(schedules, 1, 2),
        backend(backend_options(n_devices)),
        executor(backend, source, schedules, options) {}
  std::vector<Schedule> schedules;
  GeneratedWeights source;
  HostBackend backend;
  Executor executor;
};

class EveryKind : public testing::TestWithParam<std::tuple<bool, int64_t, bool>> {};

TEST_P(EveryKind, OfSplitRunsAndIsChecked) {
  const auto [with_experts, n_tokens, op_offload] = GetParam();
  const Model m = model(7, with_experts);
  Placement where = placement(m, all_kinds(), Where::pinned);
  where.op_offload = op_offload;
  Running run(m, where, n_tokens, checking());
  for (int i = 0; i < 3; ++i) {
    const PassRecord record = run.executor.run(0);
    EXPECT_EQ(record.splits.size(), run.schedules[0].splits.size());
    EXPECT_GT(record.n_checked, 50);
    EXPECT_GT(record.up_bytes, 0);
    EXPECT_GT(record.down_bytes, 0);
    EXPECT_GT(record.seconds, 0.0);
  }
}

INSTANTIATE_TEST_SUITE_P(Executor, EveryKind, testing::Combine(testing::Bool(), testing::Values<int64_t>(1, 5, 40), testing::Bool()));

// On every kind of split, too, dense and as experts.
class EveryType : public testing::TestWithParam<int> {};

TEST_P(EveryType, IsMultipliedAndChecked) {
  const DataType type = data_type(static_cast<WeightType>(GetParam()));
  for (const bool with_experts : {false, true}) {
    const Model m = model(7, with_experts, type);
    Running run(m, placement(m, all_kinds(), Where::pinned), 9, checking());
    for (const LeftOut& left : run.schedules[0].left_out) EXPECT_EQ(left.weight_bytes, 0) << left.what;
    EXPECT_GT(run.executor.run(0).n_checked, 50);
  }
}

INSTANTIATE_TEST_SUITE_P(Executor, EveryType, testing::Range(0, kWeightTypes),
                         [](const auto& tested) { return name_of(static_cast<WeightType>(tested.param)); });

TEST(Executor, RunsTensorsThatAreApartFromTheirGroup) {
  const Model m = model(7);
  Placement where = placement(m, all_kinds(), Where::pinned);
  where.exceptions = {
      {"blk.0.ffn_up.weight", Where::cpu}, {"blk.1.attn_q.weight", Where::pinned}, {"blk.5.ffn_down.weight", Where::pinned}};
  Running run(m, where, 5, checking());
  EXPECT_GT(run.executor.run(0).n_checked, 50);
}

TEST(Executor, SplitsFollowEachOtherAndCopiesComeOneSplitAhead) {
  const Model m = model(8);
  const std::vector<LayerPlacement> lanes{LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  Running run(m, placement(m, lanes, Where::cpu), 4, checking());
  const PassRecord record = run.executor.run(0);
  for (size_t i = 1; i < record.splits.size(); ++i) EXPECT_GE(record.splits[i].begin_seconds, record.splits[i - 1].end_seconds);
  for (const CopyRecord& copy : record.copies) {
    const auto split = static_cast<size_t>(copy.split);
    if (copy.queue.stream == Stream::down) {
      EXPECT_GE(copy.begin_seconds, record.splits[split].end_seconds);
      continue;
    }
    EXPECT_LE(copy.end_seconds, record.splits[split].begin_seconds);
    if (split >= 2) {
      EXPECT_GE(copy.begin_seconds, record.splits[split - 2].end_seconds);
    }
  }
}

TEST(Executor, SerialOrderCopiesNothingAhead) {
  const Model m = model(6);
  const std::vector<LayerPlacement> lanes{LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  ExecutorOptions options = checking();
  options.order = Order::serial;
  Running run(m, placement(m, lanes, Where::cpu), 4, options);
  const PassRecord record = run.executor.run(0);
  for (const CopyRecord& copy : record.copies) {
    if (copy.queue.stream == Stream::down || copy.split == 0) continue;
    EXPECT_GE(copy.begin_seconds, record.splits[static_cast<size_t>(copy.split) - 1].end_seconds);
  }
}

TEST(Executor, OnlyExpertsThatAreDrawnAreCopied) {
  const Model m = model(4, true);
  // Attention is resident, so that the routing is known when the experts' split begins.
  const std::vector<LayerPlacement> layers{with_ffn(LayerPlacement::uniform(Where::pinned), Where::stream_a),
                                           with_ffn(LayerPlacement::uniform(Where::pinned), Where::stream_b)};
  std::vector<Schedule> schedules{schedule(m, placement(m, layers, Where::cpu), 1)};
  int64_t whole = 0;
  for (Split& split : schedules[0].splits) {
    split.is_sliced = true;
    for (const int32_t tensor : split.streamed_experts) whole += schedules[0].tensors[static_cast<size_t>(tensor)].n_bytes;
  }
  ASSERT_GT(whole, 0);
  const GeneratedWeights source(schedules, 1, 1);
  HostBackend backend(backend_options());
  Executor executor(backend, source, schedules, checking());
  EXPECT_EQ(executor.run(0).up_bytes, whole / 4);  // 2 of 8
}

TEST(Executor, ChangesBetweenSchedulesMoveOnlyWhatTheyDoNotShare) {
  const Model m = model(6);
  const auto pinned = LayerPlacement::uniform(Where::pinned);
  const auto cpu = LayerPlacement::uniform(Where::cpu);
  std::vector<Schedule> schedules{
      schedule(m, placement(m, {pinned, pinned, cpu}, Where::cpu), 1),
      schedule(m, placement(m, {pinned, LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)}, Where::pinned),
               40)};
  const GeneratedWeights source(schedules, 1, 1);
  HostBackend backend(backend_options());
  Executor executor(backend, source, schedules, checking(1, 2));
  const auto resident = [&](size_t i) {
    int64_t bytes = 0;
    for (const StreamTensor& tensor : schedules[i].tensors) bytes += is_gpu(tensor.home) ? tensor.n_bytes : 0;
    for (const LayerCache& cache : schedules[i].caches) bytes += is_gpu(cache.home) ? cache.n_bytes : 0;
    return bytes;
  };
  std::set<std::string> first;
  int64_t shared = 0;
  for (const StreamTensor& tensor : schedules[0].tensors) {
    if (is_gpu(tensor.home)) first.insert(tensor.name);
  }
  for (const StreamTensor& tensor : schedules[1].tensors) shared += is_gpu(tensor.home) && first.contains(tensor.name) ? tensor.n_bytes : 0;
  for (size_t i = 0; i < schedules[0].caches.size(); ++i) {
    if (is_gpu(schedules[0].caches[i].home) && is_gpu(schedules[1].caches[i].home)) shared += schedules[1].caches[i].n_bytes;
  }
  ASSERT_GT(shared, 0);
  EXPECT_EQ(executor.load(0).up_bytes, resident(0));
  executor.run(0);
  EXPECT_EQ(executor.load(1).up_bytes, resident(1) - shared);
  executor.run(1);
  EXPECT_EQ(executor.load(1).up_bytes, 0);
  EXPECT_EQ(executor.load(0).up_bytes, resident(0) - shared);
  executor.run(0);
}

TEST(Executor, SeveralDevicesPassTheActivationsOn) {
  const Model m = model(6);
  Placement where = placement(m, {LayerPlacement::uniform(Where::pinned), LayerPlacement::uniform(Where::gpu1)}, Where::gpu1);
  where.layer_pattern = {0, 0, 1, 1, 1, 1};
  where.n_gpu = 2;
  Running run(m, where, 3, checking(2), 2);
  const PassRecord record = run.executor.run(0);
  EXPECT_EQ(record.up_bytes, 0);
  ASSERT_EQ(run.schedules[0].splits.size(), 3U);  // the embedding, on the host; two GPUs
  EXPECT_EQ(run.schedules[0].splits[1].device, gpu_device(0));
  EXPECT_EQ(run.schedules[0].splits[1].n_layers, 2);
  EXPECT_EQ(run.schedules[0].splits[2].device, gpu_device(1));
  EXPECT_EQ(run.schedules[0].splits[2].n_layers, 4);
  const int64_t hidden = 3 * 256 * 4;
  const int64_t logits = 3 * 512 * 4;
  // Up once; from GPU to GPU the residual and its norm, each down and up again.
  EXPECT_EQ(record.activation_bytes, 5 * hidden + run.schedules[0].input_bytes + logits);
}

TEST(Executor, AByteMoreThanThePlanAllowsIsAnError) {
  const Model m = model(4);
  const Placement where = placement(m, all_kinds(), Where::pinned);
  std::vector<Schedule> schedules{schedule(m, where, 4)};
  const GeneratedWeights source(schedules, 1, 1);
  HostBackend backend(backend_options());
  ExecutorOptions options = checking();
  const auto taken = [&](int64_t limit) { return lay_out(schedules, {{limit}}, backend)[0].devices[index(gpu_device(0))].n_bytes; };
  int64_t needed = taken(int64_t{64} << 20);
  for (const int64_t step : {1 << 16, 1 << 12, 1 << 7}) {
    while (taken(needed - step) <= needed - step) needed -= step;
  }
  options.vram_bytes = {{needed}};
  Executor tight(backend, source, schedules, options);
  EXPECT_EQ(tight.arena_bytes(0, gpu_device(0)), needed);
  for (int i = 0; i < 3; ++i) tight.run(0);
  options.vram_bytes = {{needed - 1}};
  EXPECT_THROW(Executor(backend, source, schedules, options), StreamError);
  HostBackend small(backend_options(1, needed - 1));
  options.vram_bytes = {{needed}};
  EXPECT_THROW(Executor(small, source, schedules, options), StreamError);
}

TEST(Executor, WhatTheSystemWillNotLockIsStaged) {
  const Model m = model(6);
  std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), 4)};
  const GeneratedWeights source(schedules, 1, 1);
  HostBackendOptions some = backend_options();
  HostBackend all_backend(some);
  const Executor all(all_backend, source, schedules, checking());
  EXPECT_EQ(all.staged_bytes(), 0);
  some.page_lock_bytes = all.locked_bytes() / 2;
  HostBackend half(some);
  Executor executor(half, source, schedules, checking());
  EXPECT_GT(executor.staged_bytes(), 0);
  EXPECT_LE(executor.locked_bytes(), some.page_lock_bytes);
  EXPECT_EQ(executor.locked_bytes() + executor.staged_bytes(), all.locked_bytes());
  executor.run(0);
}

TEST(Executor, WhatIsLockedInPiecesIsNotStaged) {
  const Model m = model(2);
  const std::vector<LayerPlacement> lanes{LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  std::vector<Schedule> schedules{schedule(m, placement(m, lanes, Where::cpu), 4)};
  const GeneratedWeights source(schedules, 1, 1);
  HostBackend backend(backend_options());
  ExecutorOptions options = checking();
  options.lock_piece_bytes = 8192;
  Executor executor(backend, source, schedules, options);
  EXPECT_EQ(executor.staged_bytes(), 0);
  int n_long = 0;
  for (const Split& split : schedules[0].splits) {
    for (const int32_t at : split.streamed) {
      const StreamTensor& tensor = schedules[0].tensors[static_cast<size_t>(at)];
      n_long += tensor.n_bytes > options.lock_piece_bytes ? 1 : 0;
      EXPECT_TRUE(backend.is_locked(source.bytes(tensor), tensor.n_bytes)) << tensor.name;
    }
  }
  EXPECT_GT(n_long, 0);
  executor.run(0);
}

TEST(HostBackend, IsLockedOnlyWithoutAHole) {
  const Buffer memory(3 * 4096);
  HostBackend backend(backend_options());
  EXPECT_TRUE(backend.lock(memory.data(), 4096));
  EXPECT_TRUE(backend.lock(memory.data() + 8192, 4096));
  EXPECT_FALSE(backend.is_locked(memory.data(), 3 * 4096));
  EXPECT_TRUE(backend.is_locked(memory.data() + 8192, 4096));
  EXPECT_FALSE(backend.is_locked(memory.data() + 8192, 4097));
  EXPECT_TRUE(backend.lock(memory.data() + 4096, 4096));
  EXPECT_TRUE(backend.is_locked(memory.data() + 100, 3 * 4096 - 100));
}

TEST(Executor, WhileItIsMadeItIsInterruptedToo) {
  struct Interrupted {};
  const Model m = model(6);
  std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), 4)};
  int left = 0;
  int n_looks = 0;
  const auto look = [&] {
    ++n_looks;
    if (left-- == 0) throw Interrupted();
  };
  for (const int n_threads : {1, 3}) {
    left = 0;
    EXPECT_THROW(GeneratedWeights(schedules, 1, n_threads, look), Interrupted);
  }
  const GeneratedWeights source(schedules, 1, 1);
  HostBackend backend(backend_options());
  n_looks = 0;
  left = 1 << 20;
  { const Executor whole(backend, source, schedules, checking(), look); }
  const int n_all = n_looks;  // checksums, caches, weights that are locked
  EXPECT_GT(n_all, 50);
  for (const int at : {0, n_all / 2, n_all - 1}) {
    left = at;
    EXPECT_THROW(Executor(backend, source, schedules, checking(), look), Interrupted);
    for (const StreamTensor& tensor : schedules[0].tensors) EXPECT_FALSE(backend.is_locked(source.bytes(tensor), tensor.n_bytes));
  }
  Executor executor(backend, source, schedules, checking());
  EXPECT_GT(executor.run(0).n_checked, 50);
}

TEST(Executor, InterruptedItEndsAndCanBeUsedAgain) {
  const Model m = model(6);
  Running run(m, placement(m, all_kinds(), Where::pinned), 40, checking());
  struct Interrupted {};
  EXPECT_THROW(run.executor.run(0, [] { throw Interrupted(); }), Interrupted);
  EXPECT_GT(run.executor.run(0).n_checked, 0);
}

}  // namespace
}  // namespace pshard
