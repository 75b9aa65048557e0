// What the CUDA backend does on a real GPU (cuda_backend_test.cpp) and on a CUDA runtime of threads (cuda_backend_on_host_test.cpp) alike.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "stream/cuda_backend.hpp"
#include "stream_cases.hpp"

namespace pshard::cuda_cases {

using namespace stream_cases;

using MakeBackend = std::unique_ptr<Backend> (*)(const CudaBackendOptions&);
inline constexpr int64_t kAll = int64_t{1} << 40;

inline CudaBackendOptions options(int64_t page_lock_bytes, size_t n_gpu = 1) {
  return {test_cpus(2), std::vector<int64_t>(n_gpu, int64_t{8} << 20), page_lock_bytes, cpu_paths().back()};
}

inline std::string error_of(Executor& executor) {
  try {
    executor.run(0);
  } catch (const StreamError& error) {
    return error.what();
  }
  return "";
}

// Streamed and kept in two lanes and on the CPU; both GPUs, with the CPU between them.
inline void several_gpus_pass_the_activations_on(MakeBackend make) {
  const auto uniform = [](Where where) { return LayerPlacement::uniform(where); };
  const Model m = model(7);
  for (const int64_t page_lock_bytes : {int64_t{0}, kAll}) {
    for (const int64_t n_tokens : {1, 40}) {
      Placement where = placement(m, {uniform(Where::pinned), uniform(Where::cpu), uniform(Where::gpu1)}, Where::gpu1);
      where.layer_pattern = {0, 0, 1, 2, 0, 2, 2};
      where.n_gpu = 2;
      const std::vector<Schedule> schedules{schedule(m, where, n_tokens)};
      const GeneratedWeights source(schedules, 1, 2);
      const std::unique_ptr<Backend> backend = make(options(page_lock_bytes, 2));
      Executor executor(*backend, source, schedules, checking(2));
      for (int i = 0; i < 2; ++i) EXPECT_GT(executor.run(0).n_checked, 20);
    }
  }
}

// What is page-locked already is refused by the driver: by another backend, a part in the middle of the weights.
inline void page_locking_that_is_refused_half_way_is_staged(MakeBackend make) {
  const Model m = model(6);
  const std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), 5)};
  const GeneratedWeights source(schedules, 1, 2);
  std::vector<std::pair<const uint8_t*, int64_t>> streamed;
  for (const Split& split : schedules[0].splits) {
    for (const int32_t tensor : split.streamed) {
      const StreamTensor& each = schedules[0].tensors[static_cast<size_t>(tensor)];
      streamed.emplace_back(source.bytes(each), each.n_bytes);
    }
  }
  std::sort(streamed.begin(), streamed.end());
  ASSERT_GT(streamed.size(), 5U);
  const auto [taken, n_taken] = streamed[streamed.size() / 2];
  const std::unique_ptr<Backend> other = make(options(kAll));
  ASSERT_TRUE(other->lock(taken, n_taken));
  const std::unique_ptr<Backend> backend = make(options(kAll));
  {
    Executor executor(*backend, source, schedules, checking());
    EXPECT_GT(executor.staged_bytes(), n_taken);
    EXPECT_GT(executor.locked_bytes(), streamed.front().second);
    for (int i = 0; i < 2; ++i) EXPECT_GT(executor.run(0).n_checked, 50);
  }
  other->unlock_all();
  Executor executor(*backend, source, schedules, checking());
  EXPECT_EQ(executor.staged_bytes(), 0);
  EXPECT_GT(executor.run(0).n_checked, 50);
}

// The weights of schedules in a file, one after the other.
struct WeightFile {
  WeightFile(const std::string& name, const std::vector<Schedule>& schedules) : path(testing::TempDir() + name) {
    const GeneratedWeights generated(schedules, 1, 2);
    std::ofstream file(path, std::ios::binary);
    for (const StreamTensor& tensor : schedules[0].tensors) {
      file.write(reinterpret_cast<const char*>(generated.bytes(tensor)), tensor.n_bytes);
      tensors.push_back({tensor.name, 0, n_bytes, tensor.n_bytes});
      n_bytes += tensor.n_bytes;
    }
  }
  ~WeightFile() { std::remove(path.c_str()); }
  std::string path;
  std::vector<TensorInFile> tensors;
  int64_t n_bytes = 0;
};

inline void a_file_that_is_cut_short_is_named(MakeBackend make) {
  const Model m = model(4);
  const std::vector<LayerPlacement> lanes{LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  const std::vector<Schedule> schedules{schedule(m, placement(m, lanes, Where::pinned), 5)};
  for (const int64_t page_lock_bytes : {int64_t{0}, kAll}) {
    for (const bool check : {false, true}) {
      const WeightFile file("weights_to_cut", schedules);
      const std::unique_ptr<Backend> backend = make(options(page_lock_bytes));
      ExecutorOptions how = checking();
      how.check = check;
      {
        const MappedWeights source({file.path}, file.tensors);
        Executor executor(*backend, source, schedules, how);
        executor.run(0);
        ASSERT_EQ(truncate(file.path.c_str(), file.n_bytes / 3), 0);
        for (int i = 0; i < 2; ++i) EXPECT_EQ(error_of(executor), source.fault());
        EXPECT_NE(source.fault().find("became shorter while it was in use"), std::string::npos);
      }
      const GeneratedWeights source(schedules, 1, 2);
      Executor executor(*backend, source, schedules, checking());
      EXPECT_GT(executor.run(0).n_checked, 20);
    }
  }
}

// Hands everything on; the weights of one product lie where no memory is.
class WithAFault : public Backend {
 public:
  WithAFault(Backend& backend, int product) : backend_(backend), left_(product) {}

  uint8_t* arena(Device device) override { return backend_.arena(device); }
  int64_t arena_bytes(Device device) const override { return backend_.arena_bytes(device); }
  int64_t scratch_bytes(const Product& product) const override { return backend_.scratch_bytes(product); }
  int64_t scratch_bytes(const AttentionShape& shape) const override { return backend_.scratch_bytes(shape); }
  bool lock(const uint8_t* bytes, int64_t n_bytes) override { return backend_.lock(bytes, n_bytes); }
  void unlock_all() override { backend_.unlock_all(); }
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override { backend_.copy(queue, to, from, n_bytes); }
  void multiply(Queue queue, const Product& product) override {
    Product other = product;
    if (is_gpu(queue.device) && left_-- == 0) other.weights = reinterpret_cast<const uint8_t*>(uintptr_t{4096});  // NOLINT
    backend_.multiply(queue, other);
  }
  void attend(Queue queue, const AttentionWork& work) override { backend_.attend(queue, work); }
  void inspect(Queue queue, const uint8_t* bytes, int64_t n_bytes, std::function<void(const uint8_t*)> look) override {
    backend_.inspect(queue, bytes, n_bytes, std::move(look));
  }
  void check_attention(Queue queue, const AttentionWork& work) override { backend_.check_attention(queue, work); }
  int64_t y_row(const Product& product, int64_t i) const override { return backend_.y_row(product, i); }
  Event record(Queue queue) override { return backend_.record(queue); }
  Event begin(Queue queue) override { return backend_.begin(queue); }
  void wait(Queue queue, Event event) override { backend_.wait(queue, event); }
  void finish(const std::function<void()>& poll) override { backend_.finish(poll); }
  bool has_come(Event event) override { return backend_.has_come(event); }
  double seconds(Event event) override { return backend_.seconds(event); }
  void forget_events() override { backend_.forget_events(); }

 private:
  Backend& backend_;
  int left_;
};

// In a process of its own, which it ends: what was wrong on stderr. Afterwards a GPU works again, or says that it takes a new process; the
// host does.
[[noreturn]] inline void fault_in_mid_pass(MakeBackend make) {
  const Model m = model(4);
  const std::vector<Schedule> schedules{schedule(m, placement(m, all_kinds(), Where::pinned), 5)};
  const GeneratedWeights source(schedules, 1, 2);
  const auto passes = [&](Backend& backend) {
    Executor executor(backend, source, schedules, checking());
    return error_of(executor);
  };
  {
    const std::unique_ptr<Backend> backend = make(options(int64_t{1} << 20));
    WithAFault faulty(*backend, 9);
    std::cerr << "first: " << passes(faulty) << "\n";
  }
  std::string again;
  try {
    again = passes(*make(options(int64_t{1} << 20)));
  } catch (const StreamError& error) {
    again = error.what();
  }
  std::cerr << "again: " << again << "\n";
  HostBackend host(backend_options());
  const bool is_usable = again.empty() || again.find("start this program again") != std::string::npos;
  std::_Exit(is_usable && passes(host).empty() ? 0 : 1);
}

// For EXPECT_EXIT: in a process that is not a copy of one that has used CUDA.
inline void start_children_anew() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
inline constexpr const char* kFault = "first: CUDA: .*an illegal memory access was encountered";

}  // namespace pshard::cuda_cases
