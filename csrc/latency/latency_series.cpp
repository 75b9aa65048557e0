#include "latency/latency_series.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <utility>

namespace pshard {

namespace {

constexpr double kMaxLatencyUs = 3.6e9;
// A recorder's clock may differ by this much from pass to pass without having gone back.
constexpr double kClockToleranceSeconds = 1.0;
// A shift's new level is not tested before this many values.
constexpr int64_t kRearmValues = 16;
// How uncertain a mean is, in scales and times the square root of the values, at 95 %.
constexpr double kMeanDoubt = 2.0;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

double root(size_t n) { return std::sqrt(static_cast<double>(n)); }

}  // namespace

double ExpectedSeconds::at(double tokens) const {
  if (seconds.size() == 1 || !(tokens > n_tokens.front())) return seconds.front();
  const auto after = std::lower_bound(n_tokens.begin() + 1, n_tokens.end() - 1, tokens);
  const auto i = static_cast<size_t>(after - n_tokens.begin());
  const double slope = (seconds[i] - seconds[i - 1]) / (n_tokens[i] - n_tokens[i - 1]);
  return seconds[i - 1] + slope * (tokens - n_tokens[i - 1]);
}

LatencySeries::LatencySeries(const SeriesOptions& options, ExpectedSeconds expected)
    : options_(options), expected_(std::move(expected)), test_(options.alarm_height) {
  require(options.window >= 2, "window must be at least 2");
  require(options.warm_up >= 0, "warm_up must not be negative");
  require(options.settle >= 2 && options.settle <= options.window, "settle must be at least 2 and at most the window");
  require(options.half_life > 0.0, "half_life must be positive");
  require(options.alarm_height > 0.0 && options.deviations > 0.0, "alarm_height and deviations must be positive");
  const auto& [tokens, seconds] = expected_;
  require(!seconds.empty() && seconds.size() == tokens.size(), "expected seconds need as many token counts, and one at least");
  require(std::ranges::all_of(seconds, [](double s) { return s > 0.0 && std::isfinite(s); }), "expected seconds must be positive");
  require(std::ranges::adjacent_find(tokens, std::greater_equal<>()) == tokens.end(), "token counts must ascend");
  require(seconds.size() < 2 || *(seconds.end() - 1) >= *(seconds.end() - 2), "the last two expected seconds must not fall");
  reset();
}

void LatencySeries::reset() {
  test_.restart();
  counters_ = {};
  ring_.assign(static_cast<size_t>(options_.window), 0.0);
  times_ = ring_;
  begin_ = end_ = 0;
  relevel_at_ = options_.settle;
  reference_.reset();
  spread_.reset();
  beginning_.reset();
  shift_.reset();
  shifts_ = 0;
}

void LatencySeries::record(double latency_us, double n_tokens, double time_unix_s) {
  if (!(latency_us > 0.0 && latency_us <= kMaxLatencyUs)) {
    ++counters_.invalid;
    return;
  }
  LatencyCounters& c = counters_;
  ++c.forwards;
  c.total_us += latency_us;
  c.min_us = std::min(c.min_us, latency_us);
  c.max_us = std::max(c.max_us, latency_us);
  c.last_us = latency_us;
  if (time_unix_s < c.last_unix_s - kClockToleranceSeconds) ++c.clock_backwards;
  if (time_unix_s > c.last_unix_s && std::isfinite(time_unix_s)) c.last_unix_s = time_unix_s;
  if (c.warm_up < options_.warm_up) {
    ++c.warm_up;
    return;
  }
  add(std::log(latency_us * 1e-6 / expected_.at(n_tokens)), c.last_unix_s);
}

void LatencySeries::add(double value, double time_unix_s) {
  std::optional<int64_t> lasted;
  if (reference_) lasted = test_.add((value - reference_->centre) / *spread_, reference_->allowance);
  ring_[slot(end_)] = value;
  times_[slot(end_)] = time_unix_s;
  ++end_;
  if (lasted) {
    start_level(*lasted, reference_->centre);
  } else if (samples() >= relevel_at_) {
    relevel();
  }
}

const std::vector<double>& LatencySeries::level_values() {
  values_.clear();
  for (int64_t i = std::max(begin_, end_ - options_.window); i < end_; ++i) values_.push_back(ring_[slot(i)]);
  return values_;
}

// What the change test compares with is renewed at every doubling of the level, then once per window.
void LatencySeries::relevel() {
  const auto& values = level_values();
  const Noise noise = describe_noise(values, scratch_);
  if (noise.count >= options_.settle || !spread_) spread_ = noise.spread();
  reference_ = Reference{noise.centre, kAllowance + kMeanDoubt / root(values.size())};
  relevel_at_ = samples() + noise.count;
  if (noise.count < options_.settle) return;
  const LatencyEstimate present = describe(values);
  if (!beginning_ || beginning_->samples < std::min(present.samples, options_.window / 2)) {
    beginning_ = present;
  } else if (std::abs(std::log(present.median / beginning_->median)) > options_.deviations * std::hypot(present.error, beginning_->error)) {
    start_level(options_.settle, std::log(beginning_->median));
  }
}

void LatencySeries::start_level(int64_t length, double log_before) {
  begin_ = std::max(begin_, end_ - std::min(length, options_.window));
  test_.restart();
  const double median = describe_noise(level_values(), scratch_).median;
  shift_ = LatencyShift{std::exp(median - log_before), times_[slot(begin_)], times_[slot(end_ - 1)]};
  ++shifts_;
  reference_.reset();
  beginning_.reset();
  relevel_at_ = std::max(kRearmValues, samples());
  if (samples() >= relevel_at_) relevel();
}

std::optional<LatencyEstimate> LatencySeries::estimate() {
  if (samples() == 0) return std::nullopt;
  return describe(level_values());
}

LatencyEstimate LatencySeries::describe(const std::vector<double>& values) {
  const Noise noise = describe_noise(values, scratch_);
  // Few values say where a level is, but not how much it varies: at least as it did before.
  const double spread = noise.count < options_.settle && spread_ ? std::max(noise.scale, *spread_) : noise.spread();
  double sum = 0.0;
  double weights = 0.0;
  double weight = 1.0;
  const double decay = std::exp2(-1.0 / options_.half_life);
  for (auto value = values.rbegin(); value != values.rend(); ++value, weight *= decay) {
    if (noise.is_outlier(*value)) continue;
    sum += weight * *value;
    weights += weight;
  }
  return {.samples = noise.count,
          .outliers = noise.outliers,
          .median = std::exp(noise.median),
          .average = std::exp(weights > 0.0 ? sum / weights : noise.median),
          .scale = noise.scale,
          .correlation = noise.correlation,
          // The median of normal values is less certain than their mean by the square root of pi / 2.
          .error = std::sqrt(std::numbers::pi / 2.0) * spread / root(values.size())};
}

}  // namespace pshard
