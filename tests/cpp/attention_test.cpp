#include "probe/attention.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "probe/cache_rows.hpp"
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

Buffer random_cache(const AttentionShape& shape) {
  const int64_t n_rows = shape.depth * shape.n_kv_heads;
  const int64_t key_bytes = n_rows * row_bytes(shape.key_type, shape.head_size);
  Buffer cache(key_bytes + n_rows * row_bytes(shape.value_type, shape.head_size));
  fill_random(shape.key_type, n_rows, shape.head_size, 3, cache.data());
  fill_random(shape.value_type, n_rows, shape.head_size, 4, cache.data() + key_bytes);
  return cache;
}

constexpr WeightType kF16 = WeightType::f16, kQ8 = WeightType::q8_0, kQ4 = WeightType::q4_0;
constexpr std::pair<WeightType, WeightType> kQuantised[] = {{kQ8, kQ8}, {kQ4, kQ4}, {kQ8, kQ4}, {kQ8, kF16}, {kF16, kQ4}};

class EveryPath : public testing::TestWithParam<CpuPath> {};

TEST_P(EveryPath, EqualsDoublePrecision) {
  for (const int64_t depth : {1, 63, 64, 300}) {
    for (const int64_t batch : {1, 5, 64, 70}) {  // one by one, and in tiles
      Attention attention(kernels(GetParam()), {6, 2, 48, depth, batch}, 1);
      const Buffer cache = random_cache(attention);
      attention.start(cache.data());
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
      attention.start(cache.data());
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
    attention.start(cache.data());
    pool.run([&](int thread) { attention.run(thread); }, steady_timer());
    EXPECT_EQ(attention.fault(), "") << "depth " << depth;
  }
}

TEST_P(EveryPath, QuantisedCachesEqualDoublePrecision) {
  for (const auto& [keys, values] : kQuantised) {
    for (const int64_t size : {32, 96}) {
      for (const int64_t batch : {1, 5, 70}) {
        const AttentionShape shape{6, 2, size, 300, batch, keys, values};
        Attention attention(kernels(GetParam()), shape, 1);
        const Buffer cache = random_cache(shape);
        ASSERT_EQ(attention.cache_bytes(), cache.size());
        attention.start(cache.data());
        attention.run(0);
        EXPECT_EQ(attention.fault(), "") << name_of(keys) << " and " << name_of(values) << ", heads of " << size << ", batch " << batch;
      }
    }
  }
}

// Each thread takes whole heads, and only those over F16 are dealt by cells.
TEST_P(EveryPath, ThreadsShareTheHeadsOfOneTokenOverAQuantisedCache) {
  ThreadPool pool(test_cpus(3));
  const AttentionShape shape{6, 2, 64, 700, 1, kQ8, kQ8};
  Attention attention(kernels(GetParam()), shape, 3);
  const Buffer cache = random_cache(shape);
  for (int round = 0; round < 3; ++round) {
    attention.spoil_output();
    attention.start(cache.data());
    pool.run([&](int thread) { attention.run(thread); }, steady_timer());
    EXPECT_EQ(attention.fault(), "");
  }
}

// By hand: scores of two cells, with a cap and a slope of the mask; a third cell is masked.
TEST_P(EveryPath, ScoresAreCappedAndMaskedCellsAreLeftOut) {
  constexpr int64_t kSize = 32;
  const Kernels& kernel = kernels(GetParam());
  Activations queries(kF16, 1, kSize);
  const std::vector<float> ones(kSize, 1.0F);
  queries.quantise(0, ones.data());
  std::vector<uint16_t> keys(3 * kSize, float_to_half(0.5F));
  std::vector<uint16_t> values(3 * kSize, float_to_half(100.0F));
  for (int64_t i = 0; i < kSize; ++i) {
    keys[static_cast<std::size_t>(kSize + i)] = float_to_half(-0.25F);
    values[static_cast<std::size_t>(i)] = float_to_half(1.0F);
    values[static_cast<std::size_t>(kSize + i)] = float_to_half(3.0F);
  }
  const uint16_t mask[] = {0, float_to_half(0.5F), 0xfc00};
  const auto rows = [&](const std::vector<uint16_t>& of) {
    return Rows<const uint8_t>{reinterpret_cast<const uint8_t*>(of.data()), kSize * 2, 3};
  };
  std::vector<uint16_t> sums(kSize, 0);
  const Softmax share =
      kernel.attend({queries, 0, 0.125F, 2.0F, 0.5F}, {rows(keys), rows(values), mask, kernel.dot.of(WeightType::f16), nullptr}, kSize,
                    {sums.data(), nullptr, nullptr});
  const double first = 2.0 * std::tanh(0.125 * 32 * 0.5);
  const double second = 2.0 * std::tanh(0.125 * 32 * -0.25) + 0.25;
  EXPECT_NEAR(share.largest, first, 1e-5);
  EXPECT_NEAR(share.sum, 1.0 + std::exp(second - first), 1e-5);
  EXPECT_NEAR(half_to_float(sums[7]), 1.0 + 3.0 * std::exp(second - first), 2e-3);
}

TEST(Attention, RowsOfACacheAreDecodedExactly) {
  for (const WeightType type : {kQ8, kQ4}) {
    std::vector<uint8_t> row(static_cast<std::size_t>(row_bytes(type, 256)));
    fill_random(type, 1, 256, 5, row.data());
    const uint16_t scales[] = {0x8123, 0x0001, 0x0000, 0xbc00};  // subnormal, zero and negative ones too
    for (std::size_t block = 0; block < 4; ++block) std::memcpy(row.data() + block * row.size() / 8, scales + block, 2);
    std::vector<double> expected(256);
    std::vector<float> got(256);
    dequantise_row(type, row.data(), 256, expected.data());
    decode_row(type)(row.data(), 256, got.data());
    for (std::size_t i = 0; i < 256; ++i) EXPECT_EQ(got[i], static_cast<float>(expected[i])) << name_of(type) << ' ' << i;
  }
  EXPECT_EQ(decode_row(WeightType::q6_k), nullptr);
}

INSTANTIATE_TEST_SUITE_P(, EveryPath, testing::ValuesIn(cpu_paths()), [](const auto& tested) { return name_of(tested.param); });

TEST(Attention, ThreadsShareAllHeads) {
  ThreadPool pool(test_cpus(3));
  Attention attention(kScalarKernels, {8, 8, 32, 40, 20}, 3);
  const Buffer cache = random_cache(attention);
  for (int round = 0; round < 3; ++round) {
    attention.spoil_output();
    attention.start(cache.data());
    pool.run([&](int thread) { attention.run(thread); }, steady_timer());
    EXPECT_EQ(attention.fault(), "");
  }
}

void expect_a_fault(const Kernels& broken, int64_t batch, WeightType type = kF16) {
  const AttentionShape shape{2, 1, 32, 20, batch, type, type};
  Attention attention(broken, shape, 1);
  const Buffer cache = random_cache(shape);
  attention.start(cache.data());
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
  broken.attend = [](const Query& query, const Cells& cells, int64_t n_columns, const ValueSums& sums) {
    Cells fewer = cells;
    --fewer.keys.n;
    return kScalarKernels.attend(query, fewer, n_columns, sums);
  };
  expect_a_fault(broken, 3);
  expect_a_fault(broken, 70, kQ8);
}

TEST(Attention, AWrongProductWithAQuantisedKeyIsFound) {
  Kernels broken = kScalarKernels;
  broken.dot.of(kQ4) = [](const uint8_t* row, const Activations& x, int64_t j) { return 1.1F * kScalarKernels.dot.of(kQ4)(row, x, j); };
  expect_a_fault(broken, 1, kQ4);
}

TEST(Attention, CountsEveryCellForEveryToken) {
  const Attention attention(kScalarKernels, {32, 8, 128, 1000, 4}, 1);
  EXPECT_EQ(attention.cache_bytes(), 2 * 2 * 8 * 128 * 1000);
  EXPECT_DOUBLE_EQ(attention.n_flop(), 4.0 * 32 * 128 * 1000 * 4);
  const Attention quantised(kScalarKernels, {32, 8, 128, 1000, 4, kQ8, kQ4}, 1);
  EXPECT_EQ(quantised.cache_bytes(), (34 + 18) * 4 * 8 * 1000);
  EXPECT_DOUBLE_EQ(quantised.n_flop(), attention.n_flop());
}

TEST(Attention, RefusesShapesThatAreNone) {
  const auto with = [](const AttentionShape& shape) { Attention(kScalarKernels, shape, 1); };
  EXPECT_THROW(with({0, 1, 16, 8, 1}), std::invalid_argument);
  EXPECT_THROW(with({3, 2, 16, 8, 1}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 24, 8, 1}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 16, 0, 1}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 16, 8, 0}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 48, 8, 1, kQ8, kQ8}), std::invalid_argument);  // blocks of 32
  EXPECT_THROW(with({2, 2, 256, 8, 1, WeightType::q4_k, kQ8}), std::invalid_argument);
  EXPECT_THROW(with({2, 2, 256, 8, 1, kQ8, WeightType::q6_k}), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
