#include "latency/noise.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace {

using pshard::describe_noise;
using pshard::Noise;

std::vector<double> autoregression(double correlation, size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> noise;
  std::vector<double> values(n);
  double last = noise(random);
  for (double& value : values) value = last = correlation * last + std::sqrt(1.0 - correlation * correlation) * noise(random);
  return values;
}

Noise describe(const std::vector<double>& values) {
  std::vector<double> scratch;
  return describe_noise(values, scratch);
}

TEST(Noise, OfNormalValues) {
  const Noise noise = describe(autoregression(0.0, 20000, 1));
  EXPECT_NEAR(noise.median, 0.0, 0.03);
  EXPECT_NEAR(noise.centre, 0.0, 0.03);
  EXPECT_NEAR(noise.scale, 1.0, 0.02);
  EXPECT_NEAR(noise.correlation, 0.0, 0.03);
}

TEST(Noise, SeesAlikeNeighbours) { EXPECT_NEAR(describe(autoregression(0.8, 20000, 2)).correlation, 0.8, 0.02); }

TEST(Noise, OutliersAreCountedAndSetAside) {
  auto values = autoregression(0.0, 1000, 3);
  for (size_t i = 0; i < values.size(); i += 20) values[i] = 100.0;
  const Noise noise = describe(values);
  EXPECT_EQ(noise.outliers, 50);
  EXPECT_NEAR(noise.scale, 1.0, 0.12);
  EXPECT_NEAR(noise.centre, 0.0, 0.15);
}

TEST(Noise, TheMedianIsThatOfTheSortedValues) {
  EXPECT_DOUBLE_EQ(describe({3.0, 1.0, 2.0}).median, 2.0);
  EXPECT_DOUBLE_EQ(describe({4.0, 1.0, 3.0, 2.0}).median, 2.5);
  EXPECT_DOUBLE_EQ(describe({7.0}).median, 7.0);
}

TEST(Noise, ConstantValuesAreTakenToVaryALittle) {
  const Noise noise = describe(std::vector<double>(100, 3.0));
  EXPECT_DOUBLE_EQ(noise.scale, pshard::kMinScale);
  EXPECT_DOUBLE_EQ(noise.correlation, 0.0);
}

// The mean of n values lies within two of its standard errors, as `spread` has them, in 95 of 100 cases at least.
TEST(Noise, TheSpreadCoversTheErrorOfTheMean) {
  for (const double correlation : {0.0, 0.5, 0.8}) {
    int within = 0;
    for (uint32_t seed = 0; seed < 400; ++seed) {
      const Noise noise = describe(autoregression(correlation, 256, seed));
      within += std::abs(noise.centre) <= 2.0 * noise.spread() / 16.0 ? 1 : 0;
    }
    EXPECT_GE(within, 380) << correlation;
  }
}

}  // namespace
