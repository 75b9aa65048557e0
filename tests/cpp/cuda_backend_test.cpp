// On a machine with a GPU the executor's own checks run on it, also under compute-sanitizer; elsewhere its absence is said.
#include "stream/cuda_backend.hpp"

#include <gtest/gtest.h>

#include "probe/devices.hpp"
#include "stream_cases.hpp"

namespace pshard {
namespace {

using namespace stream_cases;

TEST(CudaBackend, RunsEveryKindOfSplitAndIsChecked) {
  const CudaBackendOptions options{test_cpus(2), {int64_t{64} << 20}, int64_t{1} << 20, cpu_paths().back()};
  if (query_gpus().devices.empty()) {
    EXPECT_THROW(static_cast<void>(make_cuda_backend(options)), StreamError);
    GTEST_SKIP() << "no GPU: " << query_gpus().reason;
  }
  for (const bool with_experts : {false, true}) {
    const Model m = model(7, with_experts);
    for (const int64_t n_tokens : {1, 5, 40}) {
      const std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), n_tokens)};
      const GeneratedWeights source(schedules, 1, 2);
      const std::unique_ptr<Backend> backend = make_cuda_backend(options);  // locks a part: the rest is staged
      Executor executor(*backend, source, schedules, checking());
      EXPECT_GT(executor.staged_bytes(), 0);
      for (int i = 0; i < 3; ++i) EXPECT_GT(executor.run(0).n_checked, 50);
    }
  }
}

TEST(CudaBackend, AnArenaThatIsRefusedIsAnError) {
  EXPECT_THROW(static_cast<void>(make_cuda_backend({test_cpus(1), {int64_t{1} << 60}, 0, cpu_paths().back()})), StreamError);
}

}  // namespace
}  // namespace pshard
