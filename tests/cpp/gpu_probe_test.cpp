#include "probe/gpu_probe.hpp"

#include <gtest/gtest.h>

#include "host_gpu.hpp"
#include "probe/devices.hpp"
#include "probe_cases.hpp"

namespace pshard {
namespace {

// As short as a policy can be: what is counted, verified and refused matters here, not how long it takes.
Policy shortest() {
  Policy policy;
  policy.budget_seconds = 1e-6;
  policy.min_count = policy.max_count = 2;
  return policy;
}

constexpr int64_t kMaxBytes = int64_t{4} << 20;
constexpr int64_t kChunk = 64 << 10;
const GpuProduct kProduct{WeightType::q4_k, 16, 256, 2};
const CopyShape kUp{Direction::up, HostMemory::locked, kChunk, false};
const CopyShape kDown{Direction::down, HostMemory::locked, kChunk, false};

struct Bench {
  explicit Bench(GpuFaults faults = {}) : gpu(new HostGpu(faults)), probe(std::unique_ptr<Gpu>(gpu), kMaxBytes, kMaxBytes) {}
  HostGpu* gpu;
  GpuProbe probe;
};

GpuFaults with(const std::function<void(GpuFaults&)>& change) {
  GpuFaults faults;
  change(faults);
  return faults;
}

std::string refusal(const std::function<void()>& probe) {
  try {
    probe();
  } catch (const ProbeError& error) {
    return error.what();
  }
  return "";
}

TEST(GpuProbe, CountsBytesAndFlopOfOneRepetition) {
  Bench bench;
  const ProbeResult product = bench.probe.product(kProduct, shortest());
  EXPECT_DOUBLE_EQ(product.n_flop, 2.0 * 16 * 256 * 2);
  EXPECT_DOUBLE_EQ(product.n_bytes, 16 * 144);
  EXPECT_TRUE(product.is_cold);
  const ProbeResult experts = bench.probe.experts({WeightType::q8_0, 8, 64, 6, 2, 3, false}, shortest());
  EXPECT_DOUBLE_EQ(experts.n_flop, 2.0 * 8 * 64 * 6);
  EXPECT_LE(experts.n_bytes, 6.0 * 8 * 68);
  EXPECT_GE(experts.n_bytes, 2.0 * 8 * 68);
  const ProbeResult attention = bench.probe.attention({4, 2, 64, 40, 2}, shortest());
  EXPECT_DOUBLE_EQ(attention.n_flop, 4.0 * 64 * 4 * 2 * 40);
  EXPECT_DOUBLE_EQ(attention.n_bytes, 4.0 * 64 * 2 * 40);
  EXPECT_DOUBLE_EQ(bench.probe.copy(kUp, shortest()).n_bytes, kChunk);
  EXPECT_EQ(bench.gpu->n_allocated(), 2U) << "the ring alone is kept: its page-locked memory and the GPU's";
}

TEST(GpuProbe, EveryOtherProbeVerifiesAndCounts) {
  Bench bench;
  EXPECT_DOUBLE_EQ(bench.probe.read(shortest()).n_bytes, kMaxBytes);
  EXPECT_DOUBLE_EQ(bench.probe.copy_on_device(shortest()).n_bytes, kMaxBytes / 2);
  const GpuStart start = bench.probe.start(shortest());
  EXPECT_NEAR(start.launch.time.median_seconds, HostGpu::kKernelSeconds, 1e-12);
  EXPECT_NEAR(start.hop.time.median_seconds, HostGpu::kKernelSeconds / HostGpu::kBesideShare + HostGpu::kWaitSeconds, 1e-7);
  EXPECT_GT(start.synchronise.time.median_seconds, 0.0);
  const Handoff handoff = bench.probe.handoff(shortest());
  EXPECT_GT(handoff.to_gpu.time.median_seconds, 0.0);
  EXPECT_GT(handoff.to_cpu.time.median_seconds, 0.0);
  for (const HostMemory memory : {HostMemory::locked, HostMemory::pageable}) {
    for (const Direction direction : {Direction::up, Direction::down}) {
      for (const bool is_scattered : {false, true}) {
        EXPECT_GT(bench.probe.copy({direction, memory, kChunk, is_scattered}, shortest()).bytes_per_second(), 0.0);
      }
    }
  }
}

TEST(GpuProbe, PlainCopiesAreTimedByTheHost) {
  Bench bench;
  EXPECT_GT(bench.probe.plain_copy_seconds(Direction::up, kChunk), 0.0);
  EXPECT_NO_THROW(bench.probe.copy(kDown, shortest())) << "the pattern is whole";
}

TEST(GpuProbe, SidesWorkBesideEachOther) {
  Bench bench;
  const Sides copies = bench.probe.copies_both_ways(kChunk, shortest());
  const double alone = HostGpu::kCopySeconds + kChunk / HostGpu::kBytesPerSecond;
  EXPECT_NEAR(copies.first_alone.time.median_seconds, alone, 1e-12);
  EXPECT_NEAR(copies.second_alone.time.median_seconds, alone, 1e-12);
  EXPECT_NEAR(copies.first_beside.time.median_seconds, alone / HostGpu::kBesideShare, 1e-12);
  EXPECT_NEAR(copies.second_beside.time.median_seconds, alone / HostGpu::kBesideShare, 1e-12);
  const Sides sides = bench.probe.copies_beside_product({WeightType::q8_0, 32, 64, 1}, kChunk, shortest());
  EXPECT_DOUBLE_EQ(sides.first_beside.n_bytes, kChunk);
  EXPECT_DOUBLE_EQ(sides.second_beside.n_flop, sides.second_alone.n_flop);
  EXPECT_NEAR(sides.second_beside.flop_per_second() / sides.second_alone.flop_per_second(), HostGpu::kBesideShare, 1e-9);
}

TEST(GpuProbe, RefusesSidesThatAreTooDifferent) {
  Bench bench;
  const GpuProduct large{WeightType::q8_0, 512, 512, 8};
  EXPECT_NE(refusal([&] { bench.probe.copies_beside_product(large, 64, shortest()); }).find("too different in length"), std::string::npos);
}

TEST(GpuProbe, CopiesToItRunBesideProductsOfTheCpu) {
  Bench bench;
  CpuProbe cpu(test_cpus(2), int64_t{32} << 20, cpu_paths().back());
  const std::unique_ptr<CopyWork> copies = bench.probe.copies_up(kChunk);
  const Contention contention = cpu.contention({WeightType::q4_0, Layout::plain, 512, 512, 4, 1}, *copies, shortest());
  EXPECT_DOUBLE_EQ(contention.copy_alone.n_bytes, contention.copy_under_product.n_bytes);
  EXPECT_DOUBLE_EQ(contention.product_alone.n_flop, contention.product_under_copy.n_flop);
}

TEST(GpuProbe, RefusesAWrongProduct) {
  Bench bench(with([](auto& faults) { faults.products_are_right = false; }));
  EXPECT_NE(refusal([&] { bench.probe.product(kProduct, shortest()); }).find("wrong result: row"), std::string::npos);
  EXPECT_NE(refusal([&] { bench.probe.experts({WeightType::q8_0, 8, 64, 6, 2, 3, true}, shortest()); }).find("expert"), std::string::npos);
  EXPECT_NE(refusal([&] { bench.probe.attention({4, 2, 64, 40, 2}, shortest()); }).find("of head"), std::string::npos);
  EXPECT_NE(refusal([&] { bench.probe.copies_beside_product(kProduct, kChunk, shortest()); }), "");
}

TEST(GpuProbe, RefusesACopyThatMovesNothing) {
  Bench bench(with([](auto& faults) { faults.copies_move = false; }));
  const std::string nothing = "did not arrive whole: byte 0 of its 65536 is wrong";
  EXPECT_NE(refusal([&] { bench.probe.copy(kUp, shortest()); }).find("did not arrive whole"), std::string::npos);
  EXPECT_NE(refusal([&] { bench.probe.copy(kDown, shortest()); }).find(nothing), std::string::npos);
  EXPECT_NE(refusal([&] { bench.probe.copies_both_ways(kChunk, shortest()); }), "");
  const std::unique_ptr<CopyWork> copies = bench.probe.copies_up(kChunk);
  copies->start(1);
  copies->copy_next();
  EXPECT_NE(copies->fault(), "");
}

TEST(GpuProbe, RefusesACopyThatFallsShort) {
  Bench bench(with([](auto& faults) { faults.copies_fall_short = 1; }));
  EXPECT_NE(refusal([&] { bench.probe.copy(kDown, shortest()); }).find("byte 65528 of its 65536 is wrong"), std::string::npos);
}

TEST(GpuProbe, RefusesAClockThatIsTooCoarse) {
  Bench bench(with([](auto& faults) { faults.tick_seconds = 1.0; }));
  EXPECT_NE(refusal([&] { bench.probe.product(kProduct, shortest()); }).find("timer too coarse"), std::string::npos);
}

TEST(GpuProbe, RefusesWorkThatBeganBeforeAllWasQueued) {
  Bench bench(with([](auto& faults) { faults.gate_holds = false; }));
  EXPECT_NE(refusal([&] { bench.probe.product(kProduct, shortest()); }).find("CUDA_LAUNCH_BLOCKING"), std::string::npos);
}

TEST(GpuProbe, MarksALoadThatComesAndGoes) {
  Bench bench(with([](auto& faults) { faults.late_share = 1.0; }));
  Policy policy;
  policy.budget_seconds = 0.1;
  policy.max_count = 9;
  EXPECT_TRUE(bench.probe.product(kProduct, policy).time.is_noisy);
}

TEST(GpuProbe, SaysWhereTheDriverLocksNoPages) {
  Bench bench(with([](auto& faults) { faults.most_locked_bytes = 1000; }));
  EXPECT_EQ(refusal([&] { bench.probe.copy(kUp, shortest()); }), "the driver does not page-lock 2 MiB of host memory");
  EXPECT_NO_THROW(bench.probe.copy({Direction::up, HostMemory::pageable, kChunk, false}, shortest()));
}

TEST(GpuProbe, LocksPagesUntilTheDriverRefusesOrTheLimit) {
  Bench bench(with([](auto& faults) { faults.most_locked_bytes = 10'000; }));
  const LockedMemory refused = bench.probe.lockable(3000, 100'000, 10.0);
  EXPECT_EQ(refused.n_bytes, 9000);
  EXPECT_TRUE(refused.was_refused);
  const LockedMemory limited = bench.probe.lockable(3000, 7000, 10.0);
  EXPECT_EQ(limited.n_bytes, 6000);
  EXPECT_FALSE(limited.was_refused);
  EXPECT_EQ(bench.gpu->locked_bytes(), 0) << "all is given back";
}

TEST(GpuProbe, RefusesShapesThatDoNotFit) {
  Bench bench;
  EXPECT_THROW(bench.probe.copy({Direction::up, HostMemory::locked, 100, false}, shortest()), std::invalid_argument);
  EXPECT_THROW(bench.probe.product({WeightType::q4_k, 16, 100, 1}, shortest()), std::invalid_argument);
  EXPECT_NE(refusal([&] { bench.probe.copy({Direction::up, HostMemory::locked, kMaxBytes, false}, shortest()); }), "");
  EXPECT_NE(refusal([&] { bench.probe.product({WeightType::f16, 16384, 256, 1}, shortest()); }), "");
}

TEST(GpuProbe, IsNotOpenedWithoutCuda) {
  if (built_with_cuda()) GTEST_SKIP() << "there may be a GPU";
  EXPECT_THROW(static_cast<void>(open_gpu(0)), GpuError);
}

}  // namespace
}  // namespace pshard
