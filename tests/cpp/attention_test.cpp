#include "probe/attention.hpp"

#include <gtest/gtest.h>

#include "probe/random.hpp"
#include "probe/threads.hpp"
#include "probe_cases.hpp"

namespace pshard {
namespace {

Buffer random_cache(const Attention& attention, uint64_t seed = 3) {
  Buffer cache(attention.cache_bytes());
  fill_random(WeightType::f16, 1, attention.cache_bytes() / 2, seed, cache.data());
  return cache;
}

class EveryPath : public testing::TestWithParam<CpuPath> {};

TEST_P(EveryPath, EqualsDoublePrecision) {
  for (const int64_t depth : {1, 63, 64, 300}) {
    for (const int64_t batch : {1, 5, 64, 70}) {  // one by one, and in tiles
      Attention attention(kernels(GetParam()), {6, 2, 48, depth, batch}, 1);
      const Buffer cache = random_cache(attention);
      attention.start(cache.as<uint16_t>());
      attention.run(0);
      EXPECT_EQ(attention.fault(), "") << "depth " << depth << ", batch " << batch;
    }
  }
}

// In some of these by more than 1e-3 of the mean magnitude.
TEST_P(EveryPath, SumsInHalvesMayBeRounded) {
  for (const int64_t size : {32, 64, 128}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Attention attention(kernels(GetParam()), {8, 2, size, 256, 1}, 1);
      const Buffer cache = random_cache(attention, seed);
      attention.start(cache.as<uint16_t>());
      attention.run(0);
      EXPECT_EQ(attention.fault(), "") << "heads of " << size << ", seed " << seed;
    }
  }
}

TEST_P(EveryPath, ThreadsShareTheCellsOfOneToken) {
  ThreadPool pool(test_cpus(3));
  for (const int64_t depth : {511, 512, 700}) {
    Attention attention(kernels(GetParam()), {6, 2, 48, depth, 1}, 3);
    const Buffer cache = random_cache(attention);
    attention.start(cache.as<uint16_t>());
    pool.run([&](int thread) { attention.run(thread); }, steady_timer());
    EXPECT_EQ(attention.fault(), "") << "depth " << depth;
  }
}

INSTANTIATE_TEST_SUITE_P(, EveryPath, testing::ValuesIn(cpu_paths()), [](const auto& tested) { return name_of(tested.param); });

TEST(Attention, ThreadsShareAllHeads) {
  ThreadPool pool(test_cpus(3));
  Attention attention(kScalarKernels, {8, 8, 32, 40, 20}, 3);
  const Buffer cache = random_cache(attention);
  for (int round = 0; round < 3; ++round) {
    attention.spoil_output();
    attention.start(cache.as<uint16_t>());
    pool.run([&](int thread) { attention.run(thread); }, steady_timer());
    EXPECT_EQ(attention.fault(), "");
  }
}

void expect_a_fault(const Kernels& broken, int64_t batch) {
  Attention attention(broken, {2, 1, 16, 20, batch}, 1);
  const Buffer cache = random_cache(attention);
  attention.start(cache.as<uint16_t>());
  EXPECT_NE(attention.fault(), "") << "nothing has run";
  attention.run(0);
  EXPECT_NE(attention.fault(), "");
}

TEST(Attention, AKernelThatForgetsValuesIsFound) {
  Kernels broken = kScalarKernels;
  broken.half_mix = [](Rows<const float> shares, Rows<const uint16_t> rows, int64_t n_columns, Rows<float> out) {
    kScalarKernels.half_mix(shares, {rows.data, rows.stride, rows.n - 1}, n_columns, out);
  };
  expect_a_fault(broken, 64);
  broken = kScalarKernels;
  broken.half_attend = [](const uint16_t* query, Rows<const uint16_t> keys, Rows<const uint16_t> values, const uint16_t* mask,
                          int64_t n_columns, uint16_t* sums) {
    return kScalarKernels.half_attend(query, {keys.data, keys.stride, keys.n - 1}, values, mask, n_columns, sums);
  };
  expect_a_fault(broken, 3);
}

TEST(Attention, CountsEveryCellForEveryToken) {
  const Attention attention(kScalarKernels, {32, 8, 128, 1000, 4}, 1);
  EXPECT_EQ(attention.cache_bytes(), 2 * 2 * 8 * 128 * 1000);
  EXPECT_DOUBLE_EQ(attention.n_flop(), 4.0 * 32 * 128 * 1000 * 4);
}

TEST(Attention, RefusesShapesThatAreNone) {
  const auto with = [](const AttentionShape& shape) { Attention(kScalarKernels, shape, 1); };
  EXPECT_THROW(with({0, 1, 16, 8, 1}), std::invalid_argument);
  EXPECT_THROW(with({3, 2, 16, 8, 1}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 24, 8, 1}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 16, 0, 1}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 16, 8, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
