#include "latency/latency_series.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>

namespace {

using pshard::ExpectedSeconds;
using pshard::LatencySeries;
using pshard::SeriesOptions;

SeriesOptions options() { return {.alarm_height = pshard::alarm_height(1e7), .deviations = pshard::interval_deviations(1e-5)}; }

LatencySeries series() { return {options(), ExpectedSeconds{{1.0}, {1.0}}}; }

// Latencies of `factor` milliseconds times log-normal noise, one each second.
class Source {
 public:
  explicit Source(uint32_t seed) : random_(seed) {}
  void feed(LatencySeries& into, int n, double factor, double spread) {
    for (int i = 0; i < n; ++i) into.record(1000.0 * factor * std::exp(spread * noise_(random_)), 1.0, ++second_);
  }
  double second_ = 0.0;

 private:
  std::mt19937 random_;
  std::normal_distribution<double> noise_;
};

TEST(ExpectedSeconds, ArePiecewiseLinear) {
  const ExpectedSeconds two{{1.0, 3.0, 5.0}, {1.0, 2.0, 6.0}};
  EXPECT_DOUBLE_EQ(two.at(0.0), 1.0);
  EXPECT_DOUBLE_EQ(two.at(2.0), 1.5);
  EXPECT_DOUBLE_EQ(two.at(3.0), 2.0);
  EXPECT_DOUBLE_EQ(two.at(4.0), 4.0);
  EXPECT_DOUBLE_EQ(two.at(7.0), 10.0);
  EXPECT_DOUBLE_EQ(two.at(NAN), 1.0);
  EXPECT_DOUBLE_EQ((ExpectedSeconds{{1.0}, {2.0}}.at(100.0)), 2.0);
}

TEST(LatencySeries, CountsWhatCameAndSetsAsideWhatIsNoLatency) {
  LatencySeries one = series();
  for (const double bad : {-1.0, 0.0, 1e10, std::nan(""), std::numeric_limits<double>::infinity()}) one.record(bad, 1.0, 1.0);
  one.record_invalid();
  one.record(200.0, 1.0, 10.0);
  one.record(100.0, 1.0, 5.0);
  one.record(150.0, 1.0, 9.5);
  const auto& counters = one.counters();
  EXPECT_EQ(counters.invalid, 6);
  EXPECT_EQ(counters.forwards, 3);
  EXPECT_DOUBLE_EQ(counters.total_us, 450.0);
  EXPECT_DOUBLE_EQ(counters.min_us, 100.0);
  EXPECT_DOUBLE_EQ(counters.max_us, 200.0);
  EXPECT_DOUBLE_EQ(counters.last_us, 150.0);
  EXPECT_DOUBLE_EQ(counters.last_unix_s, 10.0);
  EXPECT_EQ(counters.clock_backwards, 1);  // half a second is none
  EXPECT_EQ(counters.warm_up, 3);
  EXPECT_FALSE(one.estimate());
}

TEST(LatencySeries, WarmUpDoesNotCount) {
  LatencySeries one = series();
  for (int i = 0; i < 10; ++i) one.record(1e6, 1.0, i);
  for (int i = 0; i < 20; ++i) one.record(1000.0, 1.0, i);
  const auto estimate = one.estimate();
  ASSERT_TRUE(estimate);
  EXPECT_EQ(estimate->samples, 20);
  EXPECT_NEAR(estimate->median, 1e-3, 1e-12);
}

TEST(LatencySeries, TheMedianAndTheAverageSurviveOutliers) {
  LatencySeries one = series();
  Source source(1);
  for (int i = 0; i < 40; ++i) {
    source.feed(one, 9, 1.0, 0.05);
    one.record(1e6, 1.0, source.second_);
  }
  const auto estimate = one.estimate();
  ASSERT_TRUE(estimate);
  EXPECT_NEAR(estimate->median, 1e-3, 2e-5);
  EXPECT_NEAR(estimate->average, 1e-3, 3e-5);
  EXPECT_NEAR(static_cast<double>(estimate->outliers), 25.0, 2.0);
  EXPECT_EQ(one.shifts(), 0);
}

TEST(LatencySeries, EstimatesAreRelativeToWhatIsExpectedOfTheTokens) {
  LatencySeries one(options(), {{1.0, 512.0}, {0.001, 0.512}});
  for (int i = 0; i < 100; ++i) one.record(2000.0 * (1 + i % 7), 1 + i % 7, i);
  EXPECT_NEAR(one.estimate()->median, 2.0, 1e-9);
}

TEST(LatencySeries, AShiftBeginsANewLevelWhereItBegan) {
  LatencySeries one = series();
  Source source(2);
  source.feed(one, 500, 1.0, 0.2);
  ASSERT_EQ(one.shifts(), 0);
  int taken = 0;
  while (one.shifts() == 0 && taken < 100) {
    source.feed(one, 1, 1.5, 0.2);
    ++taken;
  }
  EXPECT_LE(taken, 25);
  EXPECT_NEAR(one.shift()->factor, 1.5, 0.25);
  EXPECT_NEAR(one.shift()->began_unix_s, 501.0, 5.0);
  EXPECT_TRUE(one.is_fresh());
  source.feed(one, 300, 1.5, 0.2);
  EXPECT_FALSE(one.is_fresh());
  EXPECT_NEAR(one.estimate()->median, 1.5e-3, 0.08e-3);
  EXPECT_EQ(one.shifts(), 1);
  source.feed(one, 60, 1.0, 0.2);
  EXPECT_EQ(one.shifts(), 2);
  EXPECT_NEAR(one.shift()->factor, 1 / 1.5, 0.15);
}

TEST(LatencySeries, ADriftTooSlowForTheTestIsAShiftToo) {
  LatencySeries one = series();
  Source source(3);
  source.feed(one, 400, 1.0, 0.3);
  for (int i = 0; i < 4000 && one.shifts() == 0; ++i) source.feed(one, 1, std::exp(std::min(0.5, i * 1.5e-4)), 0.3);
  EXPECT_EQ(one.shifts(), 1);
  EXPECT_GT(one.shift()->factor, 1.1);
}

// What the rates are for: of 4,000 windows at one alarm in 100, 40 are allowed. The spread is taken larger than it is, so there are fewer.
TEST(LatencySeries, NoiseSeldomShifts) {
  SeriesOptions hasty = options();
  hasty.alarm_height = pshard::alarm_height(2.0 * 256 / 0.01);
  hasty.deviations = pshard::interval_deviations(0.005);
  int64_t shifts = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    LatencySeries one(hasty, {{1.0}, {1.0}});
    Source(seed).feed(one, 200 * 256, 1.0, 0.2);
    shifts += one.shifts();
  }
  EXPECT_LE(shifts, 40);
  EXPECT_GE(shifts, 1);  // a test that never alarms would prove nothing
}

TEST(LatencySeries, ResetForgets) {
  LatencySeries one = series();
  Source source(4);
  source.feed(one, 300, 1.0, 0.1);
  source.feed(one, 100, 2.0, 0.1);
  ASSERT_GT(one.shifts(), 0);
  one.reset();
  EXPECT_EQ(one.counters().forwards, 0);
  EXPECT_EQ(one.samples(), 0);
  EXPECT_FALSE(one.shift());
  EXPECT_FALSE(one.estimate());
}

TEST(LatencySeries, RefusesOptionsOutOfRange) {
  const auto with = [](auto change) {
    SeriesOptions changed = options();
    change(changed);
    return LatencySeries(changed, {{1.0}, {1.0}});
  };
  EXPECT_THROW(with([](auto& o) { o.window = 1; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.settle = 1000; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.warm_up = -1; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.half_life = 0.0; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.alarm_height = 0.0; }), std::invalid_argument);
  EXPECT_THROW(LatencySeries(options(), {{}, {}}), std::invalid_argument);
  EXPECT_THROW(LatencySeries(options(), {{1.0, 1.0}, {1.0, 2.0}}), std::invalid_argument);
  EXPECT_THROW(LatencySeries(options(), {{1.0, 2.0}, {2.0, 1.0}}), std::invalid_argument);
  EXPECT_THROW(LatencySeries(options(), {{1.0}, {-1.0}}), std::invalid_argument);
}

}  // namespace
