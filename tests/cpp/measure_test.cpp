#include "probe/measure.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace pshard {
namespace {

// A clock that only moves when work is done on it.
struct FakeClock {
  double seconds = 0.0;
  Timer timer{[this] { return seconds; }, 1e-9};

  double work(double for_seconds) {
    seconds += for_seconds;
    return for_seconds;
  }
};

const auto kRight = [] { return std::string(); };

TEST(Measure, StopsAtTheLeastCountWhenNothingVaries) {
  FakeClock clock;
  const Measurement result = measure([&] { return clock.work(0.01); }, kRight, Policy{}, clock.timer);
  EXPECT_TRUE(result.is_settled);
  EXPECT_FALSE(result.is_noisy);
  EXPECT_EQ(result.count, Policy{}.min_count);
  EXPECT_DOUBLE_EQ(result.median_seconds, 0.01);
  EXPECT_DOUBLE_EQ(result.minimum_seconds, 0.01);
  EXPECT_DOUBLE_EQ(result.spread, 0.0);
}

TEST(Measure, LeavesWarmupOut) {
  FakeClock clock;
  int n = 0;
  const Measurement result = measure([&] { return clock.work(n++ < 4 ? 0.05 / n : 0.002); }, kRight, Policy{}, clock.timer);
  EXPECT_DOUBLE_EQ(result.median_seconds, 0.002);
  EXPECT_TRUE(result.is_settled);
  EXPECT_EQ(result.warmup_count, 7);  // four that fall, three that agree
}

TEST(Measure, RepeatsUntilTheSpreadIsUnderTheBound) {
  FakeClock clock;
  Policy policy;
  policy.budget_seconds = 0.1;
  int n = 0;
  const auto sample = [&] {  // every third sample is late, until the fortieth; a quarter of the budget goes by in vain before
    ++n;
    return clock.work(n % 3 == 0 && n < 40 ? 0.0013 : 0.001);
  };
  const Measurement result = measure(sample, kRight, policy, clock.timer);
  EXPECT_TRUE(result.is_settled);
  EXPECT_LE(result.spread, policy.max_spread);
  EXPECT_GT(result.count, policy.min_count);
  EXPECT_LT(clock.seconds, policy.budget_seconds);
}

TEST(Measure, EndsWithItsBudgetAndSaysSo) {
  FakeClock clock;
  int n = 0;
  const Measurement result = measure([&] { return clock.work(n++ % 2 == 0 ? 0.010 : 0.011); }, kRight, Policy{}, clock.timer);
  EXPECT_FALSE(result.is_settled);
  EXPECT_FALSE(result.is_noisy);
  EXPECT_GT(result.count, Policy{}.min_count);
  EXPECT_NEAR(clock.seconds, Policy{}.budget_seconds, 0.02);
}

TEST(Measure, TakesTheLeastCountEvenWhereTheBudgetIsShort) {
  FakeClock clock;
  int n = 0;
  const Measurement result = measure([&] { return clock.work(1.0 + 0.5 * (n++ % 2)); }, kRight, Policy{}, clock.timer);
  EXPECT_EQ(result.count, Policy{}.min_count);
  EXPECT_EQ(result.warmup_count, 1);
}

TEST(Measure, EndsAtTheGreatestCount) {
  FakeClock clock;
  Policy policy;
  policy.max_count = 12;
  int n = 0;
  const Measurement result = measure([&] { return clock.work(n++ % 2 == 0 ? 0.0010 : 0.0012); }, kRight, policy, clock.timer);
  EXPECT_EQ(result.count, 12);
  EXPECT_FALSE(result.is_settled);
}

TEST(Measure, ALoadThatComesAndStaysIsNoise) {
  FakeClock clock;
  int n = 0;
  const auto sample = [&] {
    ++n;
    return clock.work((n < 24 ? 0.010 : 0.014) + 0.001 * (n % 2));
  };
  const Measurement result = measure(sample, kRight, Policy{}, clock.timer);
  EXPECT_TRUE(result.is_noisy);
  EXPECT_FALSE(result.is_settled);
  EXPECT_GT(result.drift, 0.2);
}

TEST(Measure, ALoadThatComesAndGoesIsNoise) {
  FakeClock clock;
  int n = 0;
  const Measurement result = measure([&] { return clock.work(n++ % 3 == 0 ? 0.02 : 0.01); }, kRight, Policy{}, clock.timer);
  EXPECT_TRUE(result.is_noisy);
  EXPECT_GT(result.spread, 0.1);
}

std::string message_of(const std::function<void()>& probe) {
  try {
    probe();
  } catch (const ProbeError& error) {
    return error.what();
  }
  return "";
}

TEST(Measure, RefusesAWrongResult) {
  FakeClock clock;
  int n = 0;
  const auto sample = [&] {
    ++n;
    return clock.work(0.01);
  };
  const std::string message = message_of([&] {
    measure(
        sample, [] { return "3 is not 4"; }, Policy{}, clock.timer);
  });
  EXPECT_EQ(message, "wrong result: 3 is not 4; the time it took means nothing");
  EXPECT_EQ(n, 1) << "nothing more is timed";
}

TEST(Measure, RefusesAResultThatBecomesWrong) {
  FakeClock clock;
  int asked = 0;
  const auto fault = [&] { return std::string(asked++ == 0 ? "" : "late"); };
  EXPECT_THROW(measure([&] { return clock.work(0.01); }, fault, Policy{}, clock.timer), ProbeError);
  EXPECT_EQ(asked, 2);
}

TEST(Measure, RefusesATimerThatIsTooCoarse) {
  FakeClock clock;
  clock.timer.tick_seconds = 1e-3;
  EXPECT_EQ(message_of([&] { measure([&] { return clock.work(0.05); }, kRight, Policy{}, clock.timer); }),
            "timer too coarse: one sample took 50000.000000 us and the clock steps by 1000.000000 us; time more work at once");
  EXPECT_EQ(measure([&] { return clock.work(0.1); }, kRight, Policy{}, clock.timer).median_seconds, 0.1);
}

TEST(Measure, RefusesSamplesThatTakeNoTime) {
  FakeClock clock;
  clock.timer.tick_seconds = 0.0;
  EXPECT_THROW(measure([&] { return clock.work(0.0); }, kRight, Policy{}, clock.timer), ProbeError);
  EXPECT_THROW(measure([&] { return std::nan(""); }, kRight, Policy{}, clock.timer), ProbeError);
}

TEST(Measure, PolicyMustBePossible) {
  FakeClock clock;
  const auto with = [&](auto change) {
    Policy policy;
    change(policy);
    measure([&] { return clock.work(0.01); }, kRight, policy, clock.timer);
  };
  EXPECT_THROW(with([](Policy& p) { p.max_spread = 0.0; }), std::invalid_argument);
  EXPECT_THROW(with([](Policy& p) { p.noisy_spread = 0.01; }), std::invalid_argument);
  EXPECT_THROW(with([](Policy& p) { p.budget_seconds = -1.0; }), std::invalid_argument);
  EXPECT_THROW(with([](Policy& p) { p.min_count = 1; }), std::invalid_argument);
  EXPECT_THROW(with([](Policy& p) { p.max_count = 4; }), std::invalid_argument);
}

TEST(Measure, SummaryOfKnownSamples) {
  const Measurement result = summarise({9, 1, 2, 3, 4, 5, 6, 7, 8, 10, 0}, Policy{});
  EXPECT_DOUBLE_EQ(result.median_seconds, 5.0);
  EXPECT_DOUBLE_EQ(result.minimum_seconds, 0.0);
  EXPECT_DOUBLE_EQ(result.spread, 0.5 * (8.4 - 1.6) / 5.0);
  EXPECT_DOUBLE_EQ(result.drift, (7.0 - 3.0) / 5.0);  // of 9 1 2 3 4 and 6 7 8 10 0
  EXPECT_EQ(result.count, 11);
}

TEST(TickSeconds, IsTheStepOfTheClock) {
  int n = 0;
  EXPECT_DOUBLE_EQ(tick_seconds([&] { return 0.25 * (n++ / 10); }), 0.25);
}

}  // namespace
}  // namespace pshard
