#include "probe/activations.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int64_t kColumns = 512;

std::vector<float> values_with_a_peak_at(int64_t peak) {
  std::vector<float> values(kColumns);
  Random random(7);
  for (float& value : values) value = random.next_float();
  values[static_cast<std::size_t>(peak)] = -3.0F;  // the largest of its block, wherever that is looked for
  return values;
}

// Of blocks of 32 and of 256 columns, looked through in order and in lanes.
TEST(Activations, AreRoundedToTheNearestOfTheirBlocksScale) {
  for (const WeightType type : {WeightType::q8_0, WeightType::q4_0, WeightType::q4_k, WeightType::q6_k}) {
    for (const Layout layout : {Layout::plain, Layout::interleaved}) {
      for (const int64_t peak : {0, 13, 255, 256, 511}) {
        Activations rounded(type, 2, kColumns, layout);
        const std::vector<float> values = values_with_a_peak_at(peak);
        rounded.quantise(1, values.data());
        const int64_t block = kColumns / rounded.n_scales;
        for (int64_t i = 0; i < kColumns; ++i) {
          const float* from = values.data() + i / block * block;
          float largest = 0.0F;
          for (int64_t j = 0; j < block; ++j) largest = std::max(largest, std::abs(from[j]));
          EXPECT_FLOAT_EQ(rounded.scales[rounded.n_scales + i / block], largest / 127.0F);
          EXPECT_NEAR(rounded.value(1, i), values[static_cast<std::size_t>(i)], 0.5001 * largest / 127.0F);
        }
        for (int64_t sub = 0; sub < rounded.n_sub_blocks; ++sub) {
          const int64_t n = kColumns / rounded.n_sub_blocks;
          int32_t sum = 0;
          for (int64_t i = 0; i < n; ++i) sum += rounded.codes[kColumns + sub * n + i];
          EXPECT_FLOAT_EQ(rounded.sums[rounded.n_sub_blocks + sub], static_cast<float>(sum));
        }
      }
    }
  }
}

TEST(Activations, ThatAreZeroOrTinyBecomeZero) {
  for (const float value : {0.0F, 1e-44F}) {
    Activations rounded(WeightType::q4_0, 1, kColumns);
    const std::vector<float> values(kColumns, value);
    rounded.quantise(0, values.data());
    for (int64_t i = 0; i < kColumns; ++i) EXPECT_EQ(rounded.value(0, i), 0.0);
  }
}

}  // namespace
}  // namespace pshard
