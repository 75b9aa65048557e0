#include "latency/change_test.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <stdexcept>

namespace {

using pshard::alarm_height;
using pshard::ChangeTest;
using pshard::interval_deviations;

// Values until an alarm, from normal noise around `mean`.
double mean_run_length(double mean, double height, int alarms, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> noise(mean, 1.0);
  ChangeTest test(height);
  int64_t values = 0;
  for (int found = 0; found < alarms; ++values) {
    if (test.add(noise(random), pshard::kAllowance)) {
      ++found;
      test.restart();
    }
  }
  return static_cast<double>(values) / alarms;
}

TEST(AlarmHeight, NoiseRaisesAsManyAlarmsAsStated) {
  // Two sides, so half of what one is allowed. Siegmund's approximation is good to some percent.
  for (const double values : {500.0, 5000.0}) {
    const double measured = mean_run_length(0.0, alarm_height(values), 400, 7);
    EXPECT_GT(measured, 0.8 * values / 2.0) << values;
    EXPECT_LT(measured, 1.4 * values / 2.0) << values;
  }
}

TEST(AlarmHeight, GrowsWithTheLogarithm) {
  // exp(2kh) values: ten times as many between alarms cost log(10) / 2k in height.
  EXPECT_NEAR(alarm_height(1e8) - alarm_height(1e7), std::log(10.0) / (2.0 * pshard::kAllowance), 1e-3);
  EXPECT_EQ(alarm_height(1.0), 0.0);
  EXPECT_THROW((void)alarm_height(0.5), std::invalid_argument);
  EXPECT_THROW((void)alarm_height(INFINITY), std::invalid_argument);
}

TEST(ChangeTest, AShiftOfTwoDeviationsIsFoundInTheHeightOverItsExcess) {
  const double height = alarm_height(1e7);
  EXPECT_NEAR(mean_run_length(2.0, height, 400, 3), height / (2.0 - pshard::kAllowance), 2.0);
  EXPECT_NEAR(mean_run_length(-2.0, height, 400, 3), height / (2.0 - pshard::kAllowance), 2.0);
}

TEST(ChangeTest, TellsHowLongTheShiftHasLasted) {
  ChangeTest test(5.0);
  for (int i = 0; i < 50; ++i) EXPECT_FALSE(test.add(0.0, 0.5));
  EXPECT_FALSE(test.add(2.0, 0.5));
  EXPECT_FALSE(test.add(2.0, 0.5));
  EXPECT_FALSE(test.add(2.0, 0.5));
  EXPECT_EQ(test.add(2.0, 0.5), 4);
  test.restart();
  EXPECT_FALSE(test.add(2.0, 0.5));
}

TEST(ChangeTest, NoSingleValueIsAnAlarm) {
  ChangeTest test(5.0);
  EXPECT_FALSE(test.add(1e9, 0.5));
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(test.add(0.0, 0.5));
  EXPECT_FALSE(test.add(1e9, 0.5));
}

TEST(IntervalDeviations, ASlidingMeanLeavesTheIntervalAsOftenAsStated) {
  constexpr double kRate = 0.02;
  constexpr int kWindow = 256;
  constexpr int kWindows = 20000;
  const double u = interval_deviations(kRate);
  std::mt19937 random(5);
  std::normal_distribution<double> noise;
  std::vector<double> ring(kWindow);
  double sum = 0.0;
  for (double& value : ring) sum += value = noise(random);
  int passages = 0;
  bool outside = false;
  for (int i = 0; i < kWindows * kWindow; ++i) {
    double& oldest = ring[static_cast<size_t>(i % kWindow)];
    sum -= oldest;
    sum += oldest = noise(random);
    // Once a window: small steps over the level and back are one leave.
    const bool is_above = sum > u * 16.0;
    if (is_above && !outside) ++passages;
    if (is_above) outside = true;
    if (sum < 0.0) outside = false;
  }
  const double measured = static_cast<double>(passages) / kWindows;
  EXPECT_LT(measured, 1.3 * kRate);
  EXPECT_GT(measured, 0.4 * kRate);
  EXPECT_THROW((void)interval_deviations(0.0), std::invalid_argument);
  EXPECT_THROW((void)interval_deviations(0.5), std::invalid_argument);
}

}  // namespace
