#include "latency/change_test.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

namespace pshard {

namespace {

// Standardised values are cut here, so that no single one decides.
constexpr double kCut = 3.0;
// What a sum of normal values overshoots its threshold by, on average: Siegmund's constant, from both ends.
constexpr double kOvershoot = 1.166;
constexpr int kBisections = 60;

// The point between `low` and `high` where a function of one sign change turns from below to not below.
template <typename IsBelow>
double bisect(double low, double high, IsBelow is_below) {
  for (int i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2.0;
    (is_below(middle) ? low : high) = middle;
  }
  return high;
}

}  // namespace

double alarm_height(double values_per_false_alarm) {
  if (!(values_per_false_alarm >= 1.0) || !std::isfinite(values_per_false_alarm)) {
    throw std::invalid_argument("values per false alarm must be a number of at least 1");
  }
  const double b = bisect(0.0, std::log1p(values_per_false_alarm) / kAllowance + 10.0, [&](double candidate) {
    const double exponent = 2.0 * kAllowance * candidate;
    return (std::exp(exponent) - exponent - 1.0) / (2.0 * kAllowance * kAllowance) < values_per_false_alarm;
  });
  return std::max(0.0, b - kOvershoot);
}

double interval_deviations(double passages_per_window) {
  if (!(passages_per_window > 0.0 && passages_per_window <= 0.2)) {
    throw std::invalid_argument("passages per window must be above 0 and at most 0.2");
  }
  return bisect(1.0, 40.0, [&](double u) { return u * std::exp(-u * u / 2.0) / std::sqrt(2.0 * std::numbers::pi) > passages_per_window; });
}

std::optional<int64_t> ChangeTest::add(double value, double allowance) {
  const double cut = std::clamp(value, -kCut, kCut);
  std::optional<int64_t> lasted;
  for (size_t side = 0; side < sums_.size(); ++side) {
    sums_[side] = std::max(0.0, sums_[side] + (side == 0 ? cut : -cut) - allowance);
    ages_[side] = sums_[side] > 0.0 ? ages_[side] + 1 : 0;
    if (sums_[side] >= height_ && ages_[side] > 0) lasted = ages_[side];
  }
  return lasted;
}

void ChangeTest::restart() {
  sums_ = {};
  ages_ = {};
}

}  // namespace pshard
