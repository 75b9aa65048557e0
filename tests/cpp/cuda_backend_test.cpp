// On a machine with a GPU the executor's own checks run on it, also under compute-sanitizer; elsewhere its absence is said.
#include "stream/cuda_backend.hpp"

#include <gtest/gtest.h>

#include "cuda_backend_cases.hpp"
#include "probe/devices.hpp"

namespace pshard {
namespace {

using namespace cuda_cases;

class CudaBackend : public testing::Test {
 protected:
  void SetUp() override {
    if (const GpuQuery query = query_gpus(); query.devices.empty()) GTEST_SKIP() << "no GPU: " << query.reason;
  }
};

// One test for each, so that a sanitizer, which makes kernels hundreds of times as long, can be given some (bench/gpu.sh).
enum class Locked : uint8_t { none, half, all };
class CudaBackendRuns : public CudaBackend, public testing::WithParamInterface<std::tuple<bool, int64_t, Locked>> {};

TEST_P(CudaBackendRuns, EveryKindOfSplitAndIsChecked) {
  const auto [with_experts, n_tokens, locked] = GetParam();
  const Model m = model(7, with_experts);
  const std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), n_tokens)};
  const GeneratedWeights source(schedules, 1, 2);
  const std::unique_ptr<Backend> backend = make_cuda_backend(options(locked == Locked::none ? 0 : locked == Locked::half ? 1 << 20 : kAll));
  Executor executor(*backend, source, schedules, checking());
  EXPECT_EQ(executor.staged_bytes() > 0, locked != Locked::all);
  for (int i = 0; i < 2; ++i) EXPECT_GT(executor.run(0).n_checked, 50);
}

std::string name_of(const testing::TestParamInfo<CudaBackendRuns::ParamType>& tested) {
  const auto [with_experts, n_tokens, locked] = tested.param;
  const char* const memory = locked == Locked::none ? "staged" : locked == Locked::half ? "half_locked" : "locked";
  return std::string(with_experts ? "experts_" : "dense_") + std::to_string(n_tokens) + "_tokens_" + memory;
}

INSTANTIATE_TEST_SUITE_P(All, CudaBackendRuns,
                         testing::Combine(testing::Bool(), testing::Values<int64_t>(1, 5, 40),
                                          testing::Values(Locked::none, Locked::half, Locked::all)),
                         name_of);

TEST_F(CudaBackend, SeveralGpusPassTheActivationsOn) {
  if (query_gpus().devices.size() < 2) GTEST_SKIP() << "it takes two GPUs";
  several_gpus_pass_the_activations_on(make_cuda_backend);
}

TEST_F(CudaBackend, PageLockingThatIsRefusedHalfWayIsStaged) { page_locking_that_is_refused_half_way_is_staged(make_cuda_backend); }

TEST_F(CudaBackend, AFileIsLockedWhereItIsMapped) {
  const Model m = model(4);
  const std::vector<Schedule> schedules{schedule(m, placement(m, {LayerPlacement::uniform(Where::stream_a)}, Where::pinned), 4)};
  const WeightFile file("weights_to_lock", schedules);
  const MappedWeights source({file.path}, file.tensors);
  const std::unique_ptr<Backend> backend = make_cuda_backend(options(kAll));
  Executor executor(*backend, source, schedules, checking());
  for (int i = 0; i < 2; ++i) EXPECT_GT(executor.run(0).n_checked, 20);
  // Some drivers do not lock what is read-only: then it is staged, and right all the same.
  RecordProperty("staged_bytes", std::to_string(executor.staged_bytes()));
}

TEST_F(CudaBackend, AFileThatIsCutShortIsNamed) { a_file_that_is_cut_short_is_named(make_cuda_backend); }

TEST_F(CudaBackend, AnArenaThatIsRefusedIsAnError) {
  EXPECT_THROW(static_cast<void>(make_cuda_backend({test_cpus(1), {int64_t{1} << 60}, 0, cpu_paths().back()})), StreamError);
  const std::unique_ptr<Backend> backend = make_cuda_backend(options(0));
  EXPECT_GT(backend->arena_bytes(gpu_device(0)), 0);
}

// Not for a sanitizer, which would report the fault.
using CudaFault = CudaBackend;

TEST_F(CudaFault, OfAKernelEndsThePassWithAnErrorAndTheProcessGoesOn) {
  start_children_anew();
  EXPECT_EXIT(fault_in_mid_pass(make_cuda_backend), testing::ExitedWithCode(0), kFault);
}

TEST(CudaBackendWithoutGpu, IsAnError) {
  if (!query_gpus().devices.empty()) GTEST_SKIP() << "there is a GPU";
  EXPECT_THROW(static_cast<void>(make_cuda_backend(options(0))), StreamError);
}

}  // namespace
}  // namespace pshard
