#include "probe/cpu_probe.hpp"

#include <gtest/gtest.h>

#include "probe/copy_lane.hpp"
#include "probe_cases.hpp"

namespace pshard {
namespace {

// As short as a policy can be: what is counted and said matters here, not how long it takes.
Policy shortest() {
  Policy policy;
  policy.budget_seconds = 1e-6;
  policy.min_count = policy.max_count = 2;
  return policy;
}

constexpr int64_t kMaxBytes = int64_t{32} << 20;

TEST(CpuProbe, ReadsWhatItMayAndSaysThatCachesHeldIt) {
  CpuProbe probe(test_cpus(2), std::min(kMaxBytes, cold_bytes() / 2), cpu_paths().back());
  const ProbeResult result = probe.read(2, shortest());
  EXPECT_LE(result.n_bytes, static_cast<double>(kMaxBytes));
  EXPECT_GT(result.bytes_per_second(), 0.0);
  EXPECT_EQ(result.n_threads, 2);
  EXPECT_FALSE(result.is_cold);
  EXPECT_NE(result.note, "");
}

TEST(CpuProbe, ProductCountsItsBytesAndFlop) {
  CpuProbe probe(test_cpus(2), kMaxBytes, cpu_paths().back());
  const ProbeResult one = probe.product({WeightType::q4_k, Layout::plain, 512, 1024, 3, 1}, 2, shortest());
  EXPECT_DOUBLE_EQ(one.n_flop, 2.0 * 512 * 1024 * 3);
  EXPECT_DOUBLE_EQ(one.n_bytes, 512.0 * 1024 / 256 * 144);
  const ProbeResult eight = probe.product({WeightType::q4_k, Layout::interleaved, 512, 1024, 3, 8}, 1, shortest());
  EXPECT_DOUBLE_EQ(eight.n_flop, 8 * one.n_flop);
  EXPECT_DOUBLE_EQ(eight.n_bytes, 8 * one.n_bytes);
  EXPECT_EQ(eight.n_threads, 1);
}

TEST(CpuProbe, ColdMeansMoreThanTheCachesHold) {
  const ProductShape shape{WeightType::f16, Layout::plain, 256, 1024, 1, 1};
  CpuProbe small(test_cpus(1), std::min(kMaxBytes, cold_bytes() / 2), cpu_paths().back());
  EXPECT_FALSE(small.product(shape, 1, shortest()).is_cold);
  CpuProbe large(test_cpus(1), 2 * cold_bytes(), cpu_paths().back());
  EXPECT_TRUE(large.product(shape, 1, shortest()).is_cold);
}

// Each verifies its products: weights of one shape must not pass for those of another, nor pages that were never filled for copies.
TEST(CpuProbe, ProbesFollowEachOtherInAnyOrder) {
  CpuProbe probe(test_cpus(2), kMaxBytes, cpu_paths().back());
  const ProductShape one{WeightType::q4_k, Layout::plain, 1024, 1024, 1, 1};
  ProductShape many = one;
  many.n_used = kMaxBytes / (1024 * 1024 / 256 * 144);
  ProductShape interleaved = one;
  interleaved.layout = Layout::interleaved;
  const ProductShape half{WeightType::f16, Layout::plain, 1024, 1024, 1, 1};
  for (const ProductShape& shape : {half, one, many, one, interleaved, one, half}) {
    EXPECT_NO_THROW(probe.product(shape, 2, shortest()));
  }
  const AttentionShape halves{4, 2, 64, 500, 2};
  AttentionShape quantised = halves;
  quantised.key_type = quantised.value_type = WeightType::q8_0;
  AttentionShape mixed = quantised;
  mixed.value_type = WeightType::q4_0;
  AttentionShape deeper = halves;
  deeper.depth = 501;
  for (const AttentionShape& shape : {halves, halves, quantised, mixed, quantised, deeper, halves}) {
    EXPECT_NO_THROW(probe.attention(shape, 2, shortest()));
  }
  EXPECT_NO_THROW(probe.product(half, 2, shortest()));
  probe.read(2, shortest());
  EXPECT_NO_THROW(probe.product(half, 2, shortest()));
}

TEST(CpuProbe, RefusesMoreExpertsThanMemoryHolds) {
  CpuProbe probe(test_cpus(1), 1 << 20, cpu_paths().back());
  EXPECT_THROW(probe.product({WeightType::q8_0, Layout::plain, 512, 512, 1, 4}, 1, shortest()), ProbeError);
}

TEST(CpuProbe, EveryOtherProbeVerifiesAndCounts) {
  CpuProbe probe(test_cpus(2), kMaxBytes, cpu_paths().back());
  const ProbeResult attention = probe.attention({4, 2, 64, 500, 2}, 2, shortest());
  EXPECT_DOUBLE_EQ(attention.n_flop, 4.0 * 4 * 64 * 500 * 2);
  const Contention contention = probe.contention({WeightType::q4_0, Layout::plain, 512, 512, 4, 1}, 1 << 20, shortest());
  EXPECT_DOUBLE_EQ(contention.copy_alone.n_bytes, contention.copy_under_product.n_bytes);
  EXPECT_DOUBLE_EQ(contention.product_alone.n_flop, contention.product_under_copy.n_flop);
  EXPECT_EQ(contention.product_alone.n_threads, 1);
  const OpCost cost = probe.op_cost(2, shortest());
  EXPECT_GT(cost.op.time.median_seconds, 0.0);
  EXPECT_GT(cost.wake.time.median_seconds, 0.0);
}

TEST(CpuProbe, PeakCountsWhatTheSumsProve) {
  for (const CpuPath path : cpu_paths()) {
    CpuProbe probe(test_cpus(2), kMaxBytes, path);
    const Peak peak = probe.peak(2, shortest());
    const double lanes = kernels(path).lanes;
    EXPECT_DOUBLE_EQ(peak.floats.n_flop, 2 * 2 * lanes * kPeakChains * 100'000);
    EXPECT_DOUBLE_EQ(peak.bytes.n_flop, 4 * peak.floats.n_flop);
  }
}

// Whatever a probe times, a wrong result is no figure.
TEST(CpuProbe, RefusesWhatBrokenKernelsGive) {
  Kernels broken = kScalarKernels;
  broken.sum = [](const uint64_t* words, int64_t n) { return kScalarKernels.sum(words, n) + 1; };
  broken.spin_bytes = [](int64_t) { return int64_t{0}; };
  broken.attend = [](const Query&, const Cells&, int64_t, const ValueSums&) { return Softmax{0.0F, 1.0F}; };
  broken.multiply.of(WeightType::q4_0) = [](const uint8_t*, int64_t, const Activations&, int64_t, int64_t, float*, int64_t, uint8_t*) {};
  broken.decay_rows = [](const StateRows&, float, const float*, const float*, const float*, float*) {};
  CpuProbe probe(test_cpus(2), kMaxBytes, CpuPath::scalar, broken);
  EXPECT_THROW(probe.scan({ScanKind::mamba2, 4, 8, 32, 3}, 2, shortest()), ProbeError);
  EXPECT_NO_THROW(probe.scan({ScanKind::delta_net, 4, 8, 32, 3}, 2, shortest()));
  EXPECT_THROW(probe.read(2, shortest()), ProbeError);
  EXPECT_THROW(probe.peak(2, shortest()), ProbeError);
  EXPECT_THROW(probe.attention({4, 2, 64, 600, 1}, 2, shortest()), ProbeError);
  const ProductShape shape{WeightType::q4_0, Layout::plain, 512, 512, 4, 1};
  EXPECT_THROW(probe.product(shape, 2, shortest()), ProbeError);
  EXPECT_THROW(probe.contention(shape, 1 << 20, shortest()), ProbeError);
  EXPECT_NO_THROW(probe.product({WeightType::q8_0, Layout::plain, 512, 512, 4, 1}, 2, shortest()));
}

TEST(CpuProbe, RefusesCopiesBesideAProductThatMoveNothing) {
  CpuProbe probe(test_cpus(2), kMaxBytes, cpu_paths().back());
  const ProductShape shape{WeightType::q4_0, Layout::plain, 512, 512, 4, 1};
  CopyLane idle(1 << 20, kMaxBytes / 2, [](void* to, const void*, std::size_t) { return to; });
  EXPECT_THROW(probe.contention(shape, idle, shortest()), ProbeError);
}

TEST(CpuProbe, ContentionTakesTwoCpus) {
  CpuProbe probe(test_cpus(1), kMaxBytes, cpu_paths().back());
  EXPECT_THROW(probe.contention({WeightType::q4_0, Layout::plain, 512, 512, 4, 1}, 1 << 20, shortest()), ProbeError);
}

}  // namespace
}  // namespace pshard
