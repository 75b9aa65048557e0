#include "latency/noise.hpp"

#include <algorithm>
#include <cmath>

namespace pshard {

namespace {

// Alike neighbours beyond this cannot be told from a drift.
constexpr double kMaxCorrelation = 0.95;
// What the scale of n normal values may lie below the true one, relative to it and times the square root of n, at 95 %.
constexpr double kScaleDoubt = 1.2;

}  // namespace

double Noise::spread() const {
  const double root = std::sqrt(static_cast<double>(count));
  const double alike = std::min(correlation + 1.0 / root, kMaxCorrelation);
  return scale * (1.0 + kScaleDoubt / root) * std::sqrt((1.0 + alike) / (1.0 - alike));
}

bool Noise::is_outlier(double value) const { return std::abs(value - median) > kOutlierScales * scale; }

Noise describe_noise(std::span<const double> values, std::vector<double>& scratch) {
  scratch.assign(values.begin(), values.end());
  const auto rank = [&](double share) { return static_cast<ptrdiff_t>(share * static_cast<double>(values.size() - 1)); };
  const auto low = scratch.begin() + rank(0.1587);
  const auto middle = scratch.begin() + rank(0.5);
  const auto high = scratch.begin() + rank(0.8413);
  std::nth_element(scratch.begin(), middle, scratch.end());
  std::nth_element(scratch.begin(), low, middle);
  if (high != middle) std::nth_element(middle + 1, high, scratch.end());
  Noise noise;
  noise.count = static_cast<int64_t>(values.size());
  noise.median = values.size() % 2 != 0 ? *middle : (*middle + *std::min_element(middle + 1, scratch.end())) / 2.0;
  noise.scale = std::max(kMinScale, (*high - *low) / 2.0);

  double sum = 0.0;
  for (const double value : values) {
    if (noise.is_outlier(value)) {
      ++noise.outliers;
    } else {
      sum += value - noise.median;
    }
  }
  const auto inside = static_cast<double>(std::max<int64_t>(1, noise.count - noise.outliers));
  const double mean = sum / inside;
  double squares = 0.0;
  double products = 0.0;
  double before = 0.0;
  for (const double value : values) {
    const double residual = noise.is_outlier(value) ? 0.0 : value - noise.median - mean;
    squares += residual * residual;
    products += residual * before;
    before = residual;
  }
  noise.centre = noise.median + mean;
  noise.correlation = squares > 0.0 ? std::clamp(products / squares, 0.0, kMaxCorrelation) : 0.0;
  noise.scale = std::max(noise.scale, std::sqrt(squares / inside));
  return noise;
}

}  // namespace pshard
