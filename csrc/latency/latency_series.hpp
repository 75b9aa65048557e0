// Latencies of one shard in one phase: a window of them, and what can be said about it in spite of noise.
//
// Everything is estimated on logarithms of seconds over expected seconds, because latencies vary by factors. Set aside, and counted: what
// is no latency (not positive, not finite, over an hour), the first passes (warm-up), and for all but the median what is an outlier.
//
// A level begins with the first value after warm-up or with a shift. A shift is what the change test finds, or a level that has drifted too
// far from where it began, which is too slow for that test.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "latency/change_test.hpp"
#include "latency/noise.hpp"

namespace pshard {

struct SeriesOptions {
  int64_t window = 256;       // values that estimates are made from
  int64_t warm_up = 10;       // first values that are set aside
  int64_t settle = 100;       // values that a level takes before its noise counts as known; at most `window`
  double half_life = 32.0;    // values after which one counts half in the decayed average
  double alarm_height = 0.0;  // of the change test
  double deviations = 0.0;    // standard errors by which a level must differ from its beginning to have drifted
};

// Seconds that a pass is expected to take, over its tokens: linear between the points, constant below the first, and continued beyond the
// last where there are two.
struct ExpectedSeconds {
  std::vector<double> n_tokens;  // ascending
  std::vector<double> seconds;   // as many, positive

  [[nodiscard]] double at(double tokens) const;
};

struct LatencyEstimate {
  int64_t samples = 0;   // of the level, within the window
  int64_t outliers = 0;  // of them
  double median = 0.0;   // seconds over expected seconds
  double average = 0.0;  // decayed, without outliers
  double scale = 0.0;    // standard deviation of the logarithm
  double correlation = 0.0;
  double error = 0.0;  // standard error of the median's logarithm, with what is uncertain in scale and correlation
};

struct LatencyShift {
  double factor = 1.0;  // of the level before
  double began_unix_s = 0.0;
  double found_unix_s = 0.0;
};

// Of all valid values since the last reset, in microseconds.
struct LatencyCounters {
  int64_t forwards = 0;
  double total_us = 0.0;
  double min_us = std::numeric_limits<double>::infinity();
  double max_us = 0.0;
  double last_us = 0.0;
  double last_unix_s = -std::numeric_limits<double>::infinity();  // the latest
  int64_t invalid = 0;
  int64_t warm_up = 0;
  int64_t clock_backwards = 0;
};

class LatencySeries {
 public:
  // Throws std::invalid_argument, naming the field, where an option or the expectation is out of range.
  LatencySeries(const SeriesOptions& options, ExpectedSeconds expected);

  void record(double latency_us, double n_tokens, double time_unix_s);
  // Something came that was no number.
  void record_invalid() { ++counters_.invalid; }
  // Forgets everything.
  void reset();

  [[nodiscard]] const LatencyCounters& counters() const { return counters_; }
  [[nodiscard]] int64_t samples() const { return end_ - begin_; }
  [[nodiscard]] int64_t shifts() const { return shifts_; }
  [[nodiscard]] const std::optional<LatencyShift>& shift() const { return shift_; }
  // The level follows a shift and does not fill the window yet.
  [[nodiscard]] bool is_fresh() const { return shift_.has_value() && samples() < options_.window; }
  // Absent before the first value after warm-up.
  [[nodiscard]] std::optional<LatencyEstimate> estimate();

 private:
  // What the change test standardises by.
  struct Reference {
    double centre;
    double allowance;
  };
  [[nodiscard]] size_t slot(int64_t index) const { return static_cast<size_t>(index % options_.window); }
  // The level's values within the window, oldest first.
  [[nodiscard]] const std::vector<double>& level_values();
  [[nodiscard]] LatencyEstimate describe(const std::vector<double>& values);
  void add(double value, double time_unix_s);
  void relevel();
  void start_level(int64_t length, double log_before);

  SeriesOptions options_;
  ExpectedSeconds expected_;
  ChangeTest test_;
  LatencyCounters counters_;
  std::vector<double> ring_, times_;
  int64_t begin_ = 0;  // index of the level's first value
  int64_t end_ = 0;    // values so far
  int64_t relevel_at_ = 0;
  std::optional<Reference> reference_;
  std::optional<double> spread_;              // of the noise, where it has been known
  std::optional<LatencyEstimate> beginning_;  // of the level
  std::optional<LatencyShift> shift_;
  int64_t shifts_ = 0;
  std::vector<double> values_, scratch_;
};

}  // namespace pshard
