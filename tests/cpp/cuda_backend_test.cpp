// On a machine with a GPU the executor's own checks run on it, also under compute-sanitizer; elsewhere its absence is said.
#include "stream/cuda_backend.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "probe/devices.hpp"
#include "stream_cases.hpp"

namespace pshard {
namespace {

using namespace stream_cases;

CudaBackendOptions options(int64_t page_lock_bytes, size_t n_gpu = 1) {
  return {test_cpus(2), std::vector<int64_t>(n_gpu, int64_t{64} << 20), page_lock_bytes, cpu_paths().back()};
}

TEST(CudaBackend, RunsEveryKindOfSplitAndIsChecked) {
  if (query_gpus().devices.empty()) {
    EXPECT_THROW(static_cast<void>(make_cuda_backend(options(0))), StreamError);
    GTEST_SKIP() << "no GPU: " << query_gpus().reason;
  }
  for (const int64_t page_lock_bytes : {int64_t{0}, int64_t{1} << 20, int64_t{1} << 40}) {
    for (const bool with_experts : {false, true}) {
      const Model m = model(7, with_experts);
      for (const int64_t n_tokens : {1, 5, 40}) {
        const std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), n_tokens)};
        const GeneratedWeights source(schedules, 1, 2);
        const std::unique_ptr<Backend> backend = make_cuda_backend(options(page_lock_bytes));
        Executor executor(*backend, source, schedules, checking());
        EXPECT_EQ(executor.staged_bytes() > 0, page_lock_bytes < int64_t{1} << 40);
        for (int i = 0; i < 3; ++i) EXPECT_GT(executor.run(0).n_checked, 50);
      }
    }
  }
}

TEST(CudaBackend, SeveralGpusPassTheActivationsOn) {
  if (query_gpus().devices.size() < 2) GTEST_SKIP() << "it takes two GPUs";
  const Model m = model(6);
  Placement where = placement(m, {LayerPlacement::uniform(Where::pinned), LayerPlacement::uniform(Where::gpu1)}, Where::gpu1);
  where.layer_pattern = {0, 0, 1, 1, 1, 1};
  where.n_gpu = 2;
  const std::vector<Schedule> schedules{schedule(m, where, 3)};
  const GeneratedWeights source(schedules, 1, 2);
  const std::unique_ptr<Backend> backend = make_cuda_backend(options(0, 2));
  Executor executor(*backend, source, schedules, checking(2));
  for (int i = 0; i < 3; ++i) EXPECT_GT(executor.run(0).n_checked, 20);
}

TEST(CudaBackend, AFileIsLockedWhereItIsMapped) {
  if (query_gpus().devices.empty()) GTEST_SKIP() << "no GPU: " << query_gpus().reason;
  const Model m = model(4);
  const std::vector<Schedule> schedules{schedule(m, placement(m, {LayerPlacement::uniform(Where::stream_a)}, Where::pinned), 4)};
  const GeneratedWeights generated(schedules, 1, 2);
  const std::string path = testing::TempDir() + "weights_to_lock";
  std::vector<TensorInFile> tensors;
  {
    std::ofstream file(path, std::ios::binary);
    int64_t offset = 0;
    for (const StreamTensor& tensor : schedules[0].tensors) {
      file.write(reinterpret_cast<const char*>(generated.bytes(tensor)), tensor.n_bytes);
      tensors.push_back({tensor.name, 0, offset, tensor.n_bytes});
      offset += tensor.n_bytes;
    }
  }
  const MappedWeights source({path}, tensors);
  const std::unique_ptr<Backend> backend = make_cuda_backend(options(int64_t{1} << 40));
  Executor executor(*backend, source, schedules, checking());
  for (int i = 0; i < 2; ++i) EXPECT_GT(executor.run(0).n_checked, 20);
  // Some drivers do not lock what is read-only: then it is staged, and right all the same.
  RecordProperty("staged_bytes", std::to_string(executor.staged_bytes()));
  std::remove(path.c_str());
}

TEST(CudaBackend, AnArenaThatIsRefusedIsAnError) {
  EXPECT_THROW(static_cast<void>(make_cuda_backend({test_cpus(1), {int64_t{1} << 60}, 0, cpu_paths().back()})), StreamError);
}

}  // namespace
}  // namespace pshard
