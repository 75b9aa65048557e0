// How every figure of a profile is measured: warmed up until stable, repeated until its spread is under a bound or a budget of time ends,
// verified, and refused where the clock cannot tell what it should. The clock is an argument, so that tests can replace it.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace pshard {

// A measurement that cannot be trusted at all: a wrong result, a clock that is too coarse, a machine that lacks what it takes.
class ProbeError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// `now` counts seconds from any moment; `tick_seconds` is its smallest step.
struct Timer {
  std::function<double()> now;
  double tick_seconds = 0.0;
};

// The smallest step between two different readings, of several.
[[nodiscard]] double tick_seconds(const std::function<double()>& now);

// The monotonic clock of the operating system, its step measured once.
[[nodiscard]] const Timer& steady_timer();

struct Policy {
  double max_spread = 0.03;     // settled at or under it
  double noisy_spread = 0.10;   // over it, in spread or drift, a figure is noisy
  double budget_seconds = 0.5;  // for warm-up and repetitions together; the least count is run even if it takes longer
  int32_t min_count = 5;
  int32_t max_count = 1000;
};

// Throws std::invalid_argument, naming the field, for a policy that no measurement can follow.
void check(const Policy& policy);

struct Measurement {
  double median_seconds = 0.0;
  double minimum_seconds = 0.0;
  double spread = 0.0;       // half the distance between the 16th and the 84th percentile, relative to the median
  double drift = 0.0;        // distance between the medians of both halves, relative to the median
  int32_t count = 0;         // repetitions that these figures rest on
  int32_t warmup_count = 0;  // repetitions before them
  bool is_settled = false;   // the spread came under the bound; otherwise the budget or the greatest count ended it
  bool is_noisy = false;     // spread or drift are over the bound of noise: something else ran, or clocks changed
};

[[nodiscard]] Measurement summarise(const std::vector<double>& seconds, const Policy& policy);

// `sample` does the work once and returns its seconds by `timer`; `fault` says what is wrong with the result of the last sample, nothing
// when it is right. It is asked after the first sample and after the last. Throws ProbeError when there is a fault, when a sample takes no
// time, or when it takes less than a hundred steps of the timer.
Measurement measure(const std::function<double()>& sample, const std::function<std::string()>& fault, const Policy& policy,
                    const Timer& timer);

}  // namespace pshard
