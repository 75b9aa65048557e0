#include "probe/measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <span>

namespace pshard {
namespace {

constexpr double kLeastTicks = 100.0;  // so that the clock's step is at most 1 % of what it times
constexpr double kWarmupShare = 0.25;  // of the budget, at most
constexpr int32_t kStableCount = 3;    // samples in a row that differ by no more than the bound
constexpr double kMedian = 0.5, kLow = 0.16, kHigh = 0.84;

// Linear between the ranks; `sorted` has at least one element.
double quantile(const std::vector<double>& sorted, double share) {
  const double rank = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(rank);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

double median(std::span<const double> seconds) {
  std::vector<double> sorted(seconds.begin(), seconds.end());
  std::sort(sorted.begin(), sorted.end());
  return quantile(sorted, kMedian);
}

bool is_stable(const std::vector<double>& seconds, double bound) {
  if (seconds.size() < static_cast<std::size_t>(kStableCount)) return false;
  const auto [least, most] = std::minmax_element(seconds.end() - kStableCount, seconds.end());
  return *most - *least <= bound * *least;
}

void refuse(const std::string& fault) {
  if (!fault.empty()) throw ProbeError("wrong result: " + fault + "; the time it took means nothing");
}

double checked(double seconds, const Timer& timer) {
  if (!(seconds >= kLeastTicks * timer.tick_seconds) || !(seconds > 0.0)) {
    throw ProbeError("timer too coarse: one sample took " + std::to_string(seconds * 1e6) + " us and the clock steps by " +
                     std::to_string(timer.tick_seconds * 1e6) + " us; time more work at once");
  }
  return seconds;
}

}  // namespace

double tick_seconds(const std::function<double()>& now) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 16; ++i) {
    const double before = now();
    double after = now();
    while (after <= before) after = now();
    least = std::min(least, after - before);
  }
  return least;
}

const Timer& steady_timer() {
  static const Timer timer = [] {
    const auto now = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
    return Timer{now, tick_seconds(now)};
  }();
  return timer;
}

void check(const Policy& policy) {
  const auto require = [](bool holds, const char* rule) {
    if (!holds) throw std::invalid_argument(std::string("policy: ") + rule);
  };
  require(policy.max_spread > 0.0, "max_spread must be positive");
  require(policy.noisy_spread >= policy.max_spread, "noisy_spread must be at least max_spread");
  require(policy.budget_seconds > 0.0, "budget_seconds must be positive");
  require(policy.min_count >= 2, "min_count must be at least 2, one sample has no spread");
  require(policy.max_count >= policy.min_count, "max_count must be at least min_count");
}

Measurement summarise(const std::vector<double>& seconds, const Policy& policy) {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  Measurement result;
  result.count = static_cast<int32_t>(seconds.size());
  result.median_seconds = quantile(sorted, kMedian);
  result.minimum_seconds = sorted.front();
  result.spread = 0.5 * (quantile(sorted, kHigh) - quantile(sorted, kLow)) / result.median_seconds;
  const std::span<const double> all(seconds);
  const std::size_t half = all.size() / 2;
  if (half > 0) result.drift = std::abs(median(all.last(half)) - median(all.first(half))) / result.median_seconds;
  result.is_settled = result.spread <= policy.max_spread;
  result.is_noisy = result.spread > policy.noisy_spread || result.drift > policy.noisy_spread;
  return result;
}

Measurement measure(const std::function<double()>& sample, const std::function<std::string()>& fault, const Policy& policy,
                    const Timer& timer) {
  check(policy);
  const double start = timer.now();
  const auto elapsed = [&] { return timer.now() - start; };

  std::vector<double> warmup{checked(sample(), timer)};
  refuse(fault());
  while (!is_stable(warmup, policy.max_spread) && elapsed() < kWarmupShare * policy.budget_seconds) {
    warmup.push_back(checked(sample(), timer));
  }

  std::vector<double> seconds;
  Measurement result;
  do {
    seconds.push_back(checked(sample(), timer));
    if (static_cast<int32_t>(seconds.size()) < policy.min_count) continue;
    result = summarise(seconds, policy);
  } while (static_cast<int32_t>(seconds.size()) < policy.min_count ||
           (!result.is_settled && static_cast<int32_t>(seconds.size()) < policy.max_count && elapsed() < policy.budget_seconds));
  refuse(fault());
  result.warmup_count = static_cast<int32_t>(warmup.size());
  return result;
}

}  // namespace pshard
