// Tells a lasting shift of a series from its noise, with a stated rate of false alarms: Page's two-sided cumulative sum on standardised
// values. Each side sums what exceeds an allowance and starts again at zero, so noise is forgotten and a shift piles up. How high a sum
// must rise follows from how seldom noise alone may get there; how many values a shift takes to get there follows from its size.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace pshard {

// Half of the shift that is found first, in standard deviations: the textbook's choice for shifts of one and more.
inline constexpr double kAllowance = 0.5;

// How high one side must rise before it is an alarm: Siegmund's approximation of the mean number of normal values between false alarms, N =
// (exp(2kb) - 2kb - 1) / 2k^2 with b = h + 1.166 and k the allowance (D. Siegmund, Sequential Analysis, 1985), solved for h. N is of one
// side and at least 1; throws std::invalid_argument otherwise.
[[nodiscard]] double alarm_height(double values_per_false_alarm);

// How many standard errors an interval must span so that the mean of a window sliding over noise seldom leaves it: upwards, it passes a
// level of u standard errors u phi(u) times per window (D. Slepian, 1961, for large u). Solved for u; between 0 and 0.2 passages of one
// level, throws std::invalid_argument otherwise.
[[nodiscard]] double interval_deviations(double passages_per_window);

class ChangeTest {
 public:
  explicit ChangeTest(double height) : height_(height) {}

  // Adds a value that has zero mean and unit variance while nothing shifts. `allowance` is at least kAllowance: more where mean and
  // variance are themselves uncertain. Returns, with an alarm, how many values the shift has probably lasted. Restart then.
  std::optional<int64_t> add(double value, double allowance);
  void restart();

 private:
  double height_;
  std::array<double, 2> sums_{};
  std::array<int64_t, 2> ages_{};  // values since each sum was last zero
};

}  // namespace pshard
