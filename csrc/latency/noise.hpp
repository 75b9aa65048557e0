// What values spread by, in spite of outliers, and how much their neighbours are alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pshard {

// Beyond so many scales from the median lies an outlier.
inline constexpr double kOutlierScales = 5.0;
// Logarithms that vary less than this are taken to vary so much: clocks and schedulers are no better.
inline constexpr double kMinScale = 0.01;

struct Noise {
  int64_t count = 0;
  int64_t outliers = 0;
  double median = 0.0;
  double centre = 0.0;       // mean without outliers
  double scale = 0.0;        // standard deviation without outliers, or half the 16th to 84th percentiles if that is more
  double correlation = 0.0;  // of neighbours, between 0 and 0.95

  // The scale, no less than it may truly be: of few values, and of values that are like their neighbours. A mean of a first-order
  // autoregression is as uncertain as that of independent values which spread by so much.
  [[nodiscard]] double spread() const;
  [[nodiscard]] bool is_outlier(double value) const;
};

// `values` in their order, at least one; `scratch` is room for a copy.
[[nodiscard]] Noise describe_noise(std::span<const double> values, std::vector<double>& scratch);

}  // namespace pshard
