// The backend of a GPU on the CUDA runtime of cuda_runtime_on_host.hpp: all that it queues, stages, orders and gives back. Its kernels are
// references here; gpu_kernels_test.cpp has the real ones.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

// Beside that of the library, which has none, or the real one.
#define make_cuda_backend make_cuda_backend_on_host
#include "stream/cuda_backend.cu"
#include "stream/cuda_host_count.cu"
#include "stream/cuda_staging.cu"
// First the words of CUDA, then what is written in them.
#include <gtest/gtest.h>

#include "cuda_backend_cases.hpp"
#include "probe/gpu_shapes.hpp"
#include "probe/random.hpp"

namespace pshard {
namespace {

using namespace cuda_cases;

// A kernel: operands are the device's, scratch is written all over first, and the device of the stream is the one in use.
struct Operand {
  const void* bytes;
  int64_t n_bytes;
};
void launch(cudaStream_t stream, std::initializer_list<Operand> operands, void* scratch, int64_t scratch_bytes,
            std::function<void()> work) {
  HostCuda& runtime = HostCuda::self();
  if (stream->device != HostCuda::device) throw GpuError("the stream is of another device");
  bool is_right = true;
  const auto check = [&](const Operand& operand) {
    const auto place = runtime.place_of(operand.bytes, operand.n_bytes);
    is_right = is_right && place && place->end != 0 && place->device == stream->device;
  };
  for (const Operand& operand : operands) check(operand);
  if (scratch_bytes > 0) check({scratch, scratch_bytes});
  if (!is_right || runtime.kernels_to_fault-- == 0) {
    stream->thread.push([&runtime] { runtime.fault = cudaErrorIllegalAddress; });
    return;
  }
  HostCuda::push(stream, [=, work = std::move(work)] {
    if (scratch_bytes > 0) std::memset(scratch, 0xff, static_cast<size_t>(scratch_bytes));
    work();
  });
}

std::vector<double> decoded(WeightType type, const void* weights, int64_t row, int64_t n_columns) {
  std::vector<double> values(static_cast<size_t>(n_columns));
  dequantise_row(type, static_cast<const uint8_t*>(weights) + row * row_bytes(type, n_columns), n_columns, values.data());
  return values;
}
template <typename T, typename Number>
std::vector<double> numbers(const T* values, int64_t n, const Number& number) {
  std::vector<double> found(static_cast<size_t>(n));
  std::transform(values, values + n, found.begin(), number);
  return found;
}
std::vector<double> floats(const float* values, int64_t n) {
  return numbers(values, n, [](float value) { return static_cast<double>(value); });
}
std::vector<double> halves(const void* values, int64_t n) {
  return numbers(static_cast<const uint16_t*>(values), n, [](uint16_t half) { return static_cast<double>(half_to_float(half)); });
}

// Arithmetic on numbers that are the caller's own: watching each would take most of the test's time.
#define PSHARD_UNWATCHED __attribute__((no_sanitize("thread")))
PSHARD_UNWATCHED double dot(const double* a, const double* b, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
PSHARD_UNWATCHED void add(double* sums, double share, const double* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sums[i] += share * values[i];
}

}  // namespace

void require_kernels() {}

void multiply(const GpuProduct& shape, const void* weights, const float* x, float* y, void* scratch, GpuStream stream) {
  launch(stream, {{weights, weight_bytes(shape)}, {x, shape.batch * shape.n_columns * 4}, {y, shape.batch * shape.n_rows * 4}}, scratch,
         scratch_bytes(shape), [=] {
           const std::vector<double> own = floats(x, shape.batch * shape.n_columns);
           for (int64_t row = 0; row < shape.n_rows; ++row) {
             const std::vector<double> w = decoded(shape.type, weights, row, shape.n_columns);
             for (int64_t i = 0; i < shape.batch; ++i) {
               y[i * shape.n_rows + row] =
                   static_cast<float>(dot(w.data(), &own[static_cast<size_t>(i * shape.n_columns)], shape.n_columns));
             }
           }
         });
}

void multiply_experts(const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y, void* scratch,
                      GpuStream stream) {
  const int64_t n_y_rows = shape.batch * shape.n_used;
  const int64_t n_x_rows = shape.has_own_rows ? n_y_rows : shape.batch;
  launch(stream,
         {{weights, weight_bytes(shape)}, {ids, n_y_rows * 4}, {x, n_x_rows * shape.n_columns * 4}, {y, n_y_rows * shape.n_rows * 4}},
         scratch, scratch_bytes(shape), [=] {
           const std::vector<double> own = floats(x, n_x_rows * shape.n_columns);
           const std::set<int32_t> used(ids, ids + n_y_rows);
           for (const int32_t expert : used) {
             for (int64_t row = 0; row < shape.n_rows; ++row) {
               const std::vector<double> w = decoded(shape.type, weights, expert * shape.n_rows + row, shape.n_columns);
               for (int64_t out = 0; out < n_y_rows; ++out) {
                 if (ids[out] != expert) continue;
                 const double* const of_row = &own[static_cast<size_t>(out * n_x_rows / n_y_rows * shape.n_columns)];
                 y[out * shape.n_rows + row] = static_cast<float>(dot(w.data(), of_row, shape.n_columns));
               }
             }
           }
         });
}

void copy_words(void* to, const void* from, int64_t n_words, GpuStream stream) {
  const auto place = HostCuda::self().place_of(from, 4 * n_words);
  if (!place || place->end == 0 || place->device >= 0) throw GpuError("no page-locked words");
  launch(stream, {{to, 4 * n_words}}, nullptr, 0, [=] { std::memcpy(to, from, static_cast<size_t>(4 * n_words)); });
}

void attend(const AttentionShape& shape, bool, const float* queries, const void* keys, const void* values, float* out, void* scratch,
            GpuStream stream) {
  const int64_t cell = shape.n_kv_heads * shape.head_size;
  const int64_t n_out = shape.batch * shape.n_heads * shape.head_size;
  const bool rounds = !layout_of(shape).is_split;
  launch(stream, {{queries, n_out * 4}, {keys, shape.depth * cell * 2}, {values, shape.depth * cell * 2}, {out, n_out * 4}}, scratch,
         gpu_scratch_bytes(shape), [=] {
           const float scale = 1.0F / std::sqrt(static_cast<float>(shape.head_size));
           const std::vector<double> own_queries = numbers(queries, n_out, [&](float value) {
             const float q = value * 1.44269504F * scale;
             return static_cast<double>(rounds ? half_to_float(float_to_half(q)) : q);
           });
           const std::vector<double> own_keys = halves(keys, shape.depth * cell);
           const std::vector<double> own_values = halves(values, shape.depth * cell);
           for (int64_t row = 0; row < shape.batch * shape.n_heads; ++row) {
             const int64_t at = row % shape.n_heads / (shape.n_heads / shape.n_kv_heads) * shape.head_size;
             std::vector<double> sums(static_cast<size_t>(shape.head_size), 0.0);
             double total = 0.0;
             for (int64_t i = 0; i < shape.depth; ++i) {
               const auto there = static_cast<size_t>(i * cell + at);
               const double share =
                   std::exp2(dot(&own_queries[static_cast<size_t>(row * shape.head_size)], &own_keys[there], shape.head_size));
               add(sums.data(), share, &own_values[there], shape.head_size);
               total += share;
             }
             std::transform(sums.begin(), sums.end(), out + row * shape.head_size,
                            [&](double sum) { return static_cast<float>(sum / total); });
           }
         });
}

namespace {

class OnHostCuda : public testing::Test {
 protected:
  // Everything was given back.
  void TearDown() override {
    HostCuda& runtime = HostCuda::self();
    EXPECT_EQ(runtime.n_allocated(), 0U);
    EXPECT_EQ(runtime.n_streams, 0);
    EXPECT_EQ(runtime.n_events, 0);
    runtime.n_devices = 1;
    runtime.can_reset = true;
    runtime.most_registered = int64_t{1} << 40;
    runtime.kernels_to_fault = -1;
    runtime.n_waits = 0;
    runtime.can_wait_for_values = true;
    runtime.n_value_waits = 0;
  }
};

struct Running {
  Running(const Model& m, const Placement& where, int64_t n_tokens, const CudaBackendOptions& given, int n_gpu = 1)
      : schedules{schedule(m, where, n_tokens)},
        source(schedules, 1, 2),
        backend(make_cuda_backend(given)),
        executor(*backend, source, schedules, checking(n_gpu)) {}
  std::vector<Schedule> schedules;
  GeneratedWeights source;
  std::unique_ptr<Backend> backend;
  Executor executor;
};

class CudaBackendOnHost : public OnHostCuda, public testing::WithParamInterface<std::tuple<bool, int64_t, int64_t>> {};

TEST_P(CudaBackendOnHost, RunsEveryKindOfSplitAndNobodyWaitsForCopies) {
  const auto [with_experts, n_tokens, page_lock_bytes] = GetParam();
  const Model m = model(7, with_experts);
  for (const bool op_offload : {false, true}) {
    Placement where = placement(m, all_kinds(), Where::pinned);
    where.op_offload = op_offload;
    Running run(m, where, n_tokens, options(page_lock_bytes));
    for (int i = 0; i < 2; ++i) {
      const PassRecord record = run.executor.run(0);
      EXPECT_GT(record.n_checked, 50);
      EXPECT_GT(record.down_bytes, 0);
      EXPECT_GT(record.seconds, 0.0);
    }
    EXPECT_EQ(run.executor.staged_bytes() > 0, page_lock_bytes < int64_t{1} << 30);
  }
  EXPECT_EQ(HostCuda::self().n_waits, 0);
}

INSTANTIATE_TEST_SUITE_P(All, CudaBackendOnHost,
                         testing::Combine(testing::Bool(), testing::Values<int64_t>(1, 9),
                                          testing::Values<int64_t>(0, int64_t{1} << 20, int64_t{1} << 30)));

using CudaBackendHere = OnHostCuda;

TEST_F(CudaBackendHere, SeveralGpusPassTheActivationsOn) {
  HostCuda::self().n_devices = 2;
  several_gpus_pass_the_activations_on(make_cuda_backend);
}

TEST_F(CudaBackendHere, PageLockingThatIsRefusedHalfWayIsStaged) { page_locking_that_is_refused_half_way_is_staged(make_cuda_backend); }

TEST_F(CudaBackendHere, AFileThatIsCutShortIsNamed) { a_file_that_is_cut_short_is_named(make_cuda_backend); }

TEST_F(CudaBackendHere, AKernelThatFaultsEndsThePassWithAnErrorAndTheProcessGoesOn) {
  start_children_anew();
  for (const bool can_reset : {true, false}) {
    HostCuda::self().can_reset = can_reset;
    EXPECT_EXIT(fault_in_mid_pass(make_cuda_backend), testing::ExitedWithCode(0),
                std::string(kFault) + (can_reset ? ".*again: \n" : ".*again: .*start this program again"));
  }
}

TEST_F(CudaBackendHere, ChangesFromOneScheduleToAnother) {
  const Model m = model(6);
  const std::vector<LayerPlacement> few{LayerPlacement::uniform(Where::pinned), LayerPlacement::uniform(Where::cpu)};
  std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), 9), schedule(m, placement(m, few, Where::cpu), 1)};
  const GeneratedWeights source(schedules, 1, 1);
  const auto backend = make_cuda_backend(options(int64_t{1} << 30));
  Executor executor(*backend, source, schedules, checking(1, schedules.size()));
  for (const size_t i : {0, 1, 0, 1}) EXPECT_GT(executor.run(i).n_checked, 20);
  EXPECT_EQ(HostCuda::self().n_waits, 0);
}

TEST_F(CudaBackendHere, WhatTheDriverRefusesHalfWayIsStaged) {
  HostCuda::self().most_registered = 600 << 10;
  const Model m = model(6);
  Running run(m, placement(m, all_kinds(), Where::pinned), 4, options(int64_t{1} << 30));
  EXPECT_GT(run.executor.locked_bytes(), 0);
  EXPECT_GT(run.executor.staged_bytes(), 0);
  EXPECT_GT(run.executor.run(0).n_checked, 50);
}

TEST_F(CudaBackendHere, ItRunsOnTheHostAlone) {
  const Model m = model(3);
  Running run(m, placement(m, {LayerPlacement::uniform(Where::cpu)}, Where::cpu), 4, options(0, 0), 0);
  EXPECT_GT(run.executor.run(0).n_checked, 20);
}

TEST_F(CudaBackendHere, OnlyEndsAreRecordedWhereTheGpuWorksAlone) {
  constexpr int kLayers = 8;
  const Model m = model(kLayers);
  Running run(m, placement(m, {LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)}, Where::pinned), 4,
              options(int64_t{1} << 30));
  const PassRecord record = run.executor.run(0);
  int n_gpu_splits = 0;
  for (const Split& split : run.schedules[0].splits) n_gpu_splits += is_gpu(split.device) ? 1 : 0;
  // Beside those of the two rings, a base, and what the pass begins and ends with, inputs and logits: of each copy and each split one.
  EXPECT_LE(HostCuda::self().n_events, 2 * 2 * 4 + 1 + 6 + static_cast<int>(record.copies.size()) + n_gpu_splits);
  std::vector<CopyRecord> up;
  std::copy_if(record.copies.begin(), record.copies.end(), std::back_inserter(up),
               [](const CopyRecord& copy) { return copy.queue.stream != Stream::down; });
  ASSERT_EQ(up.size(), kLayers);
  for (size_t i = 0; i < up.size(); ++i) {
    EXPECT_LE(up[i].begin_seconds, up[i].end_seconds);
    EXPECT_GE(up[i].begin_seconds, i > 0 ? up[i - 1].end_seconds : -1.0) << "lanes take turns";
  }
  // Host and GPU have clocks of their own, which are read one after the other: on a busy machine that draws them apart, and the first copy
  // may seem to begin before the pass.
  for (size_t i = 1; i < record.splits.size(); ++i) {
    if (run.schedules[0].splits[i].device != run.schedules[0].splits[i - 1].device) continue;
    EXPECT_GE(record.splits[i].begin_seconds, record.splits[i - 1].end_seconds);
  }
}

TEST_F(CudaBackendHere, TheGpuWaitsForTheHostOrWhoeverQueuesDoes) {
  const Model m = model(6, true);
  for (const bool gpu_waits : {true, false}) {
    HostCuda::self().can_wait_for_values = gpu_waits;
    HostCuda::self().n_value_waits = 0;
    Running run(m, placement(m, all_kinds(), Where::pinned), 4, options(int64_t{1} << 30));
    for (int i = 0; i < 3; ++i) EXPECT_GT(run.executor.run(0).n_checked, 50);
    EXPECT_EQ(HostCuda::self().n_value_waits > 0, gpu_waits);
  }
}

TEST_F(CudaBackendHere, AKernelThatFaultsIsAnErrorAndANewBackendRuns) {
  const Model m = model(4);
  const Placement where = placement(m, all_kinds(), Where::pinned);
  const int before = HostCuda::self().n_resets;
  {
    Running run(m, where, 4, options(1 << 20));
    HostCuda::self().kernels_to_fault = 12;
    try {
      run.executor.run(0);
      FAIL() << "nothing was said";
    } catch (const StreamError& error) {
      EXPECT_NE(std::string(error.what()).find("an illegal memory access was encountered"), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(HostCuda::self().n_resets, before + 1);
  Running again(m, where, 4, options(1 << 20));
  EXPECT_GT(again.executor.run(0).n_checked, 20);
}

TEST_F(CudaBackendHere, ASingleWrongBitIsSeen) {
  const Model m = model(4);
  Running run(m, placement(m, {LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)}, Where::pinned), 4,
              options(1 << 20));
  run.executor.run(0);
  const auto& splits = run.schedules[0].splits;
  const auto split = std::find_if(splits.begin(), splits.end(), [](const Split& each) { return !each.streamed.empty(); });
  ASSERT_NE(split, splits.end());
  const StreamTensor& streamed = run.schedules[0].tensors[static_cast<size_t>(split->streamed.front())];
  auto* bytes = const_cast<uint8_t*>(run.source.bytes(streamed));
  bytes[streamed.n_bytes / 2] ^= 1;
  EXPECT_THROW(run.executor.run(0), StreamError);
  bytes[streamed.n_bytes / 2] ^= 1;
  EXPECT_GT(run.executor.run(0).n_checked, 20);
}

TEST_F(CudaBackendHere, InterruptedItEndsAndCanBeUsedAgain) {
  const Model m = model(4);
  Running run(m, placement(m, all_kinds(), Where::pinned), 4, options(0));
  struct Stop : std::exception {};
  EXPECT_THROW(run.executor.run(0, [] { throw Stop(); }), Stop);
  EXPECT_GT(run.executor.run(0).n_checked, 20);
}

TEST_F(CudaBackendHere, WhileTheCpuWorksItIsInterruptedToo) {
  const Model m = model(3);
  Running run(m, placement(m, {LayerPlacement::uniform(Where::cpu)}, Where::cpu), 4, options(0, 0), 0);
  struct Stop : std::exception {};
  int n_looks = 0;
  const auto later = [&] {
    if (++n_looks == 2) throw Stop();
  };
  run.executor.load(0);
  EXPECT_THROW(run.executor.run(0, later), Stop);
  EXPECT_GT(run.executor.run(0).n_checked, 20);
}

TEST_F(CudaBackendHere, WhatIsRefusedWhenItOpensLeavesNothing) {
  EXPECT_THROW(static_cast<void>(make_cuda_backend({test_cpus(1), {int64_t{1} << 50}, 0, cpu_paths().back()})), StreamError);
  EXPECT_THROW(static_cast<void>(make_cuda_backend(options(0, 3))), StreamError);
}

TEST_F(CudaBackendHere, AShapeThatNoKernelTakesIsAnErrorOfTheSchedule) {
  const auto backend = make_cuda_backend(options(0));
  EXPECT_THROW(static_cast<void>(backend->scratch_bytes(AttentionShape{4, 4, 80, 256, 1})), StreamError);
  EXPECT_THROW(static_cast<void>(backend->scratch_bytes(Product{WeightType::f16, 16, 48, 1})), StreamError);
}

}  // namespace
}  // namespace pshard
