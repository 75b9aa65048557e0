#include "cost/op_cost.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace pshard {
namespace {

constexpr DataType kF16{1, 1, 2};

// 100 GB/s of 200 at most, 1 TFLOP/s at most, 5 us per launch; no series yet.
Processor processor() {
  Processor p;
  p.memory_bytes_per_second = 100e9;
  p.memory_peak_bytes_per_second = 200e9;
  p.peak_flop_per_second = 1e12;
  p.op_seconds = 5e-6;
  p.basis = Basis::imported;
  p.spread = 0.2;
  return p;
}

Processor with_rate(double flop_per_second) {
  Processor p = processor();
  p.mul_mat[1] = {{1.0}, {flop_per_second}, Basis::measured, 0.1};
  p.mul_mat_id[1] = p.mul_mat[1];
  return p;
}

const Tensor kWeight{"blk.0.ffn_up.weight", kF16, {1000, 1000, 1, 1}, 2'000'000};
const Tensor kExperts{"blk.0.ffn_up_exps.weight", kF16, {1000, 1000, 8, 1}, 16'000'000};

// 1000 x 1000 with m rows: 2e6 m FLOP, 2e6 bytes of weights, 8000 m bytes of activations.
Operation product(int64_t m) {
  Operation operation;
  operation.kind = OpKind::mul_mat;
  operation.weight = &kWeight;
  operation.n = operation.k = 1000;
  operation.m = m;
  operation.flop = 2e6 * static_cast<double>(m);
  operation.activation_bytes = 8000 * m;
  return operation;
}

// `tokens` rows, each through 2 of 8 experts.
Operation routed(int64_t tokens) {
  Operation operation = product(2 * tokens);
  operation.kind = OpKind::mul_mat_id;
  operation.weight = &kExperts;
  return operation;
}

double seconds(const Operation& operation, const Processor& p) { return operation_cost(operation, p, 8, 2, 1.0).seconds; }

TEST(ScanCost, TakesTheRateOfItsKindWhereOneWasMeasured) {
  Operation scan;
  scan.kind = OpKind::scan;
  scan.recurrence = Recurrence::mamba2;
  scan.flop = 64.0 * 6e6;
  scan.activation_bytes = 4'000'000;
  Processor p = processor();
  p.peak_flop_per_second = 100e12;
  EXPECT_DOUBLE_EQ(operation_cost(scan, p, 0, 0, 64.0).seconds, 4e-5 + 5e-6);  // bytes alone
  p.delta_net = {{1.0, 64.0}, {1e9, 2e9}, Basis::measured, 0.1};
  EXPECT_DOUBLE_EQ(operation_cost(scan, p, 0, 0, 64.0).seconds, 4e-5 + 5e-6);
  p.mamba2 = {{1.0, 64.0}, {6e9, 12e9}, Basis::measured, 0.3};
  const Cost cost = operation_cost(scan, p, 0, 0, 64.0);
  EXPECT_DOUBLE_EQ(cost.seconds, 64.0 * 6e6 / 12e9 + 5e-6);
  EXPECT_DOUBLE_EQ(cost.spread_seconds, cost.seconds * 0.3);
  scan.flop = 6e6;
  EXPECT_DOUBLE_EQ(operation_cost(scan, p, 0, 0, 1.0).seconds, 1e-3 + 5e-6);
  scan.activation_bytes = 400'000'000;  // a state in memory
  EXPECT_DOUBLE_EQ(operation_cost(scan, p, 0, 0, 1.0).seconds, 4e-3 + 5e-6);
  scan.recurrence = Recurrence::none;  // a convolution
  EXPECT_DOUBLE_EQ(operation_cost(scan, p, 0, 0, 1.0).seconds, 4e-3 + 5e-6);
}

TEST(DistinctExpertShare, MatchesTheProbabilityOfBeingChosen) {
  EXPECT_DOUBLE_EQ(distinct_expert_share(8, 2, 1.0), 0.25);
  EXPECT_DOUBLE_EQ(distinct_expert_share(8, 2, 2.0), 0.4375);    // 1 - (3/4)^2
  EXPECT_DOUBLE_EQ(distinct_expert_share(4, 1, 3.0), 0.578125);  // 1 - (3/4)^3
  EXPECT_NEAR(distinct_expert_share(128, 8, 512.0), 1.0, 1e-12);
  EXPECT_DOUBLE_EQ(distinct_expert_share(8, 8, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(distinct_expert_share(0, 0, 5.0), 1.0);  // dense
}

TEST(OperationCost, TakesTheRateOfItsOwnShapeBeforeThatOfItsType) {
  Processor p = with_rate(1e11);
  p.shapes = {{false, 1, 1000, 1000, {{1.0}, {5e10}, Basis::measured, 0.1}}};
  EXPECT_DOUBLE_EQ(seconds(product(1), p), 2e6 / 5e10 + 5e-6);
  p.copied_shapes = {{false, 1, 1000, 1000, {{1.0}, {8e10}, Basis::measured, 0.1}}};
  EXPECT_DOUBLE_EQ(seconds(product(1), p), 2e6 / 5e10 + 5e-6);
  EXPECT_DOUBLE_EQ(operation_cost(product(1), p, 8, 2, 1.0, true).seconds, 2e6 / 8e10 + 5e-6);
  p.shapes = {{true, 1, 1000, 1000, p.mul_mat[1]}, {false, 1, 1000, 999, p.mul_mat[1]}, {false, 2, 1000, 1000, p.mul_mat[1]}};
  p.copied_shapes.clear();
  for (ShapeRates& other : p.shapes) other.series.flop_per_second = {1e10};
  EXPECT_DOUBLE_EQ(operation_cost(product(1), p, 8, 2, 1.0, true).seconds, 2e6 / 1e11 + 5e-6);
}

TEST(OperationCost, SkipsMaskedCellsOnProcessorsThatDo) {
  Operation attention;
  attention.kind = OpKind::attention;
  attention.flop = 1e9;
  attention.unmasked = 0.25;
  attention.cache_bytes = 1;
  Processor p = processor();
  p.attention = {{1.0, {{1.0}, {1e11}, Basis::measured, 0.1}}};
  EXPECT_DOUBLE_EQ(seconds(attention, p), 1e-2 + 5e-6);
  p.skips_masked = true;
  EXPECT_DOUBLE_EQ(seconds(attention, p), 2.5e-3 + 5e-6);
}

// 2304 cells on two threads are 1152 each. With 2064 in use the first thread skips none and the second 240: all waits for the first. With
// 576 in use the second has none, and the first half of what it would have. Fewer than 512 cells, two queries, or one thread: as above.
TEST(OperationCost, TheCellsOfASingleQueryAreDealtToThreads) {
  Operation attention;
  attention.kind = OpKind::attention;
  attention.k = 2304;
  attention.flop = 1e9;
  attention.cache_bytes = 1;
  Processor p = processor();
  p.attention = {{1.0, {{1.0}, {1e11}, Basis::measured, 0.1}}};
  p.skips_masked = true;
  const auto seconds_of = [&](int32_t n_threads, double n_in_use, double n_queries) {
    p.n_threads = n_threads;
    attention.unmasked = n_in_use / static_cast<double>(attention.k);
    return operation_cost(attention, p, 0, 0, n_queries).seconds - 5e-6;
  };
  EXPECT_NEAR(seconds_of(2, 2064.0, 1.0), 1e-2, 1e-12);
  EXPECT_NEAR(seconds_of(2, 576.0, 1.0), 0.5e-2, 1e-12);
  EXPECT_NEAR(seconds_of(1, 576.0, 1.0), 0.25e-2, 1e-12);
  EXPECT_NEAR(seconds_of(8, 576.0, 1.0), 1e-2, 1e-12);
  EXPECT_NEAR(seconds_of(2, 576.0, 2.0), 1e-2 * 0.25 * p.attention[0].rates.rate(1.0) / p.attention[0].rates.rate(2.0), 1e-12);
  attention.k = 256;
  EXPECT_NEAR(seconds_of(2, 64.0, 1.0), 0.25e-2, 1e-12);
}

// F16 has tiles; what each query reads by itself is told by type. Of two types half the work is that of either.
TEST(OperationCost, AttentionIsPricedByTheTypeOfTheCache) {
  constexpr int32_t kF32 = 0, kF16 = 1, kQ4 = 2, kQ8 = 8, kQ5 = 6;
  Operation attention;
  attention.kind = OpKind::attention;
  attention.k = 256;
  attention.flop = 1e9;
  attention.cache_bytes = 1'000'000;
  Processor p = processor();
  const auto table = [](double rate, double spread, Basis basis) { return AttentionTable{{1.0, {{1.0}, {rate}, basis, spread}, 1e9}}; };
  p.attention = table(1e11, 0.1, Basis::measured);
  p.attention_by_query[kF16] = table(2e10, 0.1, Basis::measured);
  p.attention_by_query[kQ8] = table(1e10, 0.2, Basis::measured);
  p.attention_by_query[kQ4] = table(0.5e10, 0.3, Basis::estimated);
  const auto cost_of = [&](int32_t keys, int32_t values) {
    attention.key_type = keys;
    attention.value_type = values;
    return operation_cost(attention, p, 0, 0, 512.0);
  };
  EXPECT_NEAR(cost_of(kF16, kF16).seconds, 10e-3 + 1e-3 + 5e-6, 1e-9);
  EXPECT_NEAR(cost_of(kF32, kF32).seconds, 10e-3 + 1e-3 + 5e-6, 1e-9);
  EXPECT_NEAR(cost_of(kQ8, kQ8).seconds, 100e-3 + 1e-3 + 5e-6, 1e-9);
  EXPECT_NEAR(cost_of(kQ8, kF16).seconds, (100e-3 + 50e-3) / 2 + 1e-3 + 5e-6, 1e-9);
  EXPECT_NEAR(cost_of(kQ5, kQ5).seconds, 10e-3 + 1e-3 + 5e-6, 1e-9);  // of a GPU, say, that tells none by type
  const Cost mixed = cost_of(kQ8, kQ4);
  EXPECT_NEAR(mixed.seconds, (100e-3 + 200e-3) / 2 + 1e-3 + 5e-6, 1e-9);
  EXPECT_EQ(mixed.basis, Basis::estimated);
  EXPECT_NEAR(mixed.spread_seconds, 50.5e-3 * 0.2 + 100.5e-3 * 0.3 + 0.5 * 50e-3, 1e-5);  // and half-way to either
}

TEST(OperationCost, TheCellsOfASingleQueryAreDealtOverF16Alone) {
  Operation attention;
  attention.kind = OpKind::attention;
  attention.k = 2304;
  attention.flop = 1e9;
  attention.cache_bytes = 1;
  attention.unmasked = 0.25;
  Processor p = processor();
  p.attention = p.attention_by_query[8] = {{1.0, {{1.0}, {1e11}, Basis::measured, 0.1}}};
  p.skips_masked = true;
  p.n_threads = 2;
  EXPECT_NEAR(seconds(attention, p), 0.5e-2 + 5e-6, 1e-12);
  attention.key_type = attention.value_type = 8;
  EXPECT_NEAR(seconds(attention, p), 0.25e-2 + 5e-6, 1e-12);
}

TEST(OperationCost, AttentionIsInterpolatedOverTheDepthOfTheCache) {
  Operation attention;
  attention.kind = OpKind::attention;
  attention.flop = 1e9;
  attention.cache_bytes = 1'000'000;
  Processor p = processor();
  // First reads of 1e6 bytes take 1 ms. Of 1000 cells: 10 ms and 1; of 16000: 40 ms and 4.
  p.attention = {{1000.0, {{1.0}, {1e11}, Basis::measured, 0.1}, 1e9}, {16000.0, {{1.0}, {0.25e11}, Basis::measured, 0.1}, 0.25e9}};
  const auto at_depth = [&](OpKind kind, int64_t n, int64_t k) {
    attention.kind = kind;
    attention.n = n;
    attention.k = k;
    return seconds(attention, p) - 5e-6;
  };
  EXPECT_NEAR(at_depth(OpKind::attention, 4096, 1000), 11e-3, 1e-12);
  EXPECT_NEAR(at_depth(OpKind::attention, 4096, 4000), 22e-3, 1e-12);  // half-way in log space
  EXPECT_NEAR(at_depth(OpKind::attention, 4096, 16000), 44e-3, 1e-12);
  EXPECT_NEAR(at_depth(OpKind::attention, 4096, 10), 11e-3, 1e-12);
  EXPECT_NEAR(at_depth(OpKind::attention, 4096, 100000), 44e-3, 1e-12);
  EXPECT_NEAR(at_depth(OpKind::attention_kq, 4000, 128), 22e-3, 1e-12);
  EXPECT_NEAR(at_depth(OpKind::attention_kq, 128, 4000), 22e-3, 1e-12);
}

TEST(OperationCost, MaskedCellsAreNotReadForTheFirstTimeEither) {
  Operation attention;
  attention.kind = OpKind::attention;
  attention.flop = 1.0;
  attention.unmasked = 0.25;
  attention.cache_bytes = 4'000'000;
  Processor p = processor();
  p.attention = {{1.0, {{1.0}, {1e12}, Basis::measured, 0.1}, 1e9}};
  p.skips_masked = true;
  EXPECT_NEAR(seconds(attention, p), 1e-3 + 5e-6, 1e-9);
}

TEST(ActivationRows, CountsTokensOfRoutedExperts) {
  EXPECT_DOUBLE_EQ(activation_rows(product(6), 2), 6.0);
  EXPECT_DOUBLE_EQ(activation_rows(routed(3), 2), 3.0);
}

TEST(WeightBytesRead, CountsDistinctExpertsOnce) {
  EXPECT_DOUBLE_EQ(weight_bytes_read(product(7), 8, 2), 2e6);
  EXPECT_DOUBLE_EQ(weight_bytes_read(routed(1), 8, 2), 4e6);  // a quarter of 16e6
  EXPECT_DOUBLE_EQ(weight_bytes_read(routed(2), 8, 2), 7e6);  // 0.4375 of it
  Operation look_up = product(1);
  look_up.kind = OpKind::get_rows;
  EXPECT_DOUBLE_EQ(weight_bytes_read(look_up, 8, 2), 0.0);  // its rows are among the activations
  look_up.weight = nullptr;
  EXPECT_DOUBLE_EQ(weight_bytes_read(look_up, 8, 2), 0.0);
}

TEST(OperationCost, FollowsTheSeries) {
  // 2e6 FLOP at 0.1 TFLOP/s = 20 us, above 2.008e6 bytes / 200 GB/s = 10.04 us and 2e6 / 1 TFLOP/s = 2 us.
  EXPECT_NEAR(seconds(product(1), with_rate(0.1e12)), 25e-6, 1e-12);
}

TEST(OperationCost, IsNeverFasterThanTheMemoryPeak) { EXPECT_NEAR(seconds(product(1), with_rate(100e12)), 10.04e-6 + 5e-6, 1e-12); }

TEST(OperationCost, IsNeverFasterThanTheComputePeak) {
  // 100 rows: 2e8 FLOP = 200 us at the peak; 2.8e6 bytes = 14 us.
  EXPECT_NEAR(seconds(product(100), with_rate(100e12)), 200e-6 + 5e-6, 1e-12);
}

TEST(OperationCost, InterpolatesInsideTheSeries) {
  Processor p = with_rate(1.0);
  p.mul_mat[1] = {{1.0, 16.0}, {0.05e12, 0.2e12}, Basis::measured, 0.1};
  // 4 rows lie half-way in log space: 0.1 TFLOP/s; 8e6 FLOP = 80 us.
  EXPECT_NEAR(seconds(product(4), p), 85e-6, 1e-12);
}

TEST(OperationCost, ReadsTheExpertSeriesAtRowsPerUsedExpert) {
  Processor p = with_rate(1.0);
  p.mul_mat_id[1] = {{1.0, 100.0}, {0.01e12, 1e12}, Basis::measured, 0.1};  // 0.01 TFLOP/s per row
  // 2 tokens: 4 rows over 0.4375 x 8 = 3.5 experts = 8/7 rows each: 0.08/7 TFLOP/s; 8e6 FLOP = 700 us.
  EXPECT_NEAR(seconds(routed(2), p), 705e-6, 1e-11);
}

TEST(OperationCost, CountsOnlyDistinctExpertsAgainstMemory) {
  // 7e6 bytes of experts and 32000 of activations at 200 GB/s.
  EXPECT_NEAR(seconds(routed(2), with_rate(1e15)), 7.032e6 / 200e9 + 5e-6, 1e-12);
}

TEST(OperationCost, AttentionIsTheSlowerOfItsRateAndTheCache) {
  Operation attention;
  attention.kind = OpKind::attention;
  attention.m = 64;  // not what its rate is read at
  attention.flop = 1e7;
  attention.cache_bytes = 3'000'000;
  attention.activation_bytes = 1'000'000;
  Processor p = processor();
  p.attention = {{1.0, {{1.0, 100.0}, {0.01e12, 0.1e12}, Basis::estimated, 0.3}}};
  // 1 query token: 1e7 / 0.01 TFLOP/s = 1 ms. 100: 100 us. Without flop: 4e6 bytes at 100 GB/s = 40 us.
  EXPECT_NEAR(operation_cost(attention, p, 0, 0, 1.0).seconds, 1005e-6, 1e-12);
  EXPECT_NEAR(operation_cost(attention, p, 0, 0, 100.0).seconds, 105e-6, 1e-12);
  EXPECT_EQ(operation_cost(attention, p, 0, 0, 1.0).basis, Basis::estimated);
  attention.flop = 0.0;
  EXPECT_NEAR(operation_cost(attention, p, 0, 0, 100.0).seconds, 45e-6, 1e-12);
}

TEST(OperationCost, TheRestMovesBytesAtTheRateThatKernelsReach) {
  Operation add;
  add.activation_bytes = 2'000'000;
  EXPECT_NEAR(seconds(add, processor()), 25e-6, 1e-12);  // at 100 GB/s, not the peak
}

TEST(OperationCost, AViewCostsNothing) {
  Operation view = product(1);
  view.is_view = true;
  EXPECT_DOUBLE_EQ(seconds(view, processor()), 0.0);
}

TEST(OperationCost, CarriesBasisAndSpreadOfTheSeries) {
  const Cost cost = operation_cost(product(1), with_rate(0.1e12), 0, 0, 1.0);
  EXPECT_EQ(cost.basis, Basis::measured);
  EXPECT_NEAR(cost.spread_seconds, 2.5e-6, 1e-12);
  Operation add;
  add.activation_bytes = 2'000'000;
  EXPECT_EQ(operation_cost(add, processor(), 0, 0, 1.0).basis, Basis::imported);
  EXPECT_NEAR(operation_cost(add, processor(), 0, 0, 1.0).spread_seconds, 5e-6, 1e-12);
  Cost sum = cost;
  sum += operation_cost(add, processor(), 0, 0, 1.0);
  EXPECT_EQ(sum.basis, Basis::imported);  // the least trustworthy of both
  EXPECT_NEAR(sum.seconds, 50e-6, 1e-12);
}

TEST(OperationCost, NamesATensorWithoutARate) {
  try {
    (void)operation_cost(product(1), processor(), 0, 0, 1.0);
    FAIL() << "a type without a rate was priced";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("blk.0.ffn_up.weight"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pshard
