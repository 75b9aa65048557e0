#include "probe/scan.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "probe/random.hpp"
#include "probe/threads.hpp"
#include "probe_cases.hpp"

namespace pshard {
namespace {

constexpr ScanKind kKinds[] = {ScanKind::mamba, ScanKind::mamba2, ScanKind::delta_net};

Buffer random_state(const Scan& scan) {
  Buffer state(scan.state_bytes());
  Random random(5);
  for (int64_t i = 0; i < scan.state_bytes() / 4; ++i) state.as<float>()[i] = random.next_float();
  return state;
}

class EveryPathScans : public testing::TestWithParam<CpuPath> {};

TEST_P(EveryPathScans, EqualsDoublePrecision) {
  for (const ScanKind kind : kKinds) {
    for (const int64_t n_columns : {16, 48, 64, 128}) {
      for (const int64_t batch : {1, 2, 70}) {
        Scan scan(kernels(GetParam()), {kind, 3, 5, n_columns, batch}, 1);
        const Buffer state = random_state(scan);
        scan.start(state.as<float>());
        scan.run(0);
        EXPECT_EQ(scan.fault(), "") << "kind " << static_cast<int>(kind) << ", columns " << n_columns << ", batch " << batch;
      }
    }
  }
}

TEST_P(EveryPathScans, KernelsByHand) {
  constexpr int64_t kColumns = 16;
  const Kernels& tested = kernels(GetParam());
  float before[2 * kColumns];
  float key[kColumns] = {};
  float query[kColumns] = {};
  std::fill_n(before, kColumns, 1.0F);
  std::fill_n(before + kColumns, kColumns, 2.0F);
  key[0] = 1.0F;
  query[0] = 3.0F;
  query[15] = 1.0F;
  const float input[2] = {10.0F, 20.0F};
  float after[2 * kColumns];
  float out[2];
  tested.decay_rows({before, after, 2, kColumns}, 0.5F, input, key, query, out);
  EXPECT_FLOAT_EQ(after[0], 0.5F + 10.0F);
  EXPECT_FLOAT_EQ(after[kColumns + 1], 1.0F);
  EXPECT_FLOAT_EQ(out[0], 3.0F * 10.5F + 0.5F);
  EXPECT_FLOAT_EQ(out[1], 3.0F * 21.0F + 1.0F);
  float room[2];
  tested.delta_rows({before, after, 2, kColumns}, 0.5F, input, 0.25F, key, query, room, out);
  EXPECT_FLOAT_EQ(after[0], 0.5F + 0.25F * (10.0F - 0.5F));
  EXPECT_FLOAT_EQ(after[kColumns], 1.0F + 0.25F * (20.0F - 1.0F));
  EXPECT_FLOAT_EQ(out[1], 3.0F * 5.75F + 1.0F);
}

INSTANTIATE_TEST_SUITE_P(, EveryPathScans, testing::ValuesIn(cpu_paths()), [](const auto& tested) { return name_of(tested.param); });

TEST(Scan, ThreadsShareAllHeads) {
  ThreadPool pool(test_cpus(3));
  for (const ScanKind kind : kKinds) {
    Scan scan(kScalarKernels, {kind, 7, 4, 32, 9}, 3);  // the last thread has one head
    const Buffer state = random_state(scan);
    scan.start(state.as<float>());
    pool.run([&](int thread) { scan.run(thread); }, steady_timer());
    EXPECT_EQ(scan.fault(), "");
  }
}

TEST(Scan, CountsWhatTheModelCounts) {
  const Scan scan(kScalarKernels, {ScanKind::mamba2, 48, 64, 128, 10}, 1);
  EXPECT_EQ(scan.state_bytes(), 48 * 64 * 128 * 4);
  EXPECT_DOUBLE_EQ(scan.n_flop(), 6.0 * 48 * 64 * 128 * 10);
}

TEST(Scan, FindsWhatIsWrong) {
  for (const ScanKind kind : kKinds) {
    Scan scan(kScalarKernels, {kind, 2, 2, 16, 3}, 1);
    const Buffer state = random_state(scan);
    scan.start(state.as<float>());
    EXPECT_NE(scan.fault(), "") << "nothing was computed";
    scan.run(0);
    EXPECT_EQ(scan.fault(), "");
    Scan half(kScalarKernels, {kind, 2, 2, 16, 3}, 2);
    half.start(state.as<float>());
    half.run(0);
    EXPECT_NE(half.fault(), "") << "one thread's heads are missing";
    scan.spoil_output();
    EXPECT_NE(scan.fault(), "");
  }
}

TEST(Scan, RefusesShapesWithoutAKernel) {
  EXPECT_THROW(Scan(kScalarKernels, {ScanKind::mamba2, 2, 2, 20, 1}, 1), std::invalid_argument);
  EXPECT_NO_THROW(Scan(kScalarKernels, {ScanKind::mamba, 2, 2, 20, 1}, 1));
  EXPECT_THROW(Scan(kScalarKernels, {ScanKind::mamba2, 0, 2, 16, 1}, 1), std::invalid_argument);
  EXPECT_THROW(Scan(kScalarKernels, {ScanKind::mamba2, 2, 2, 16, 0}, 1), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
