#include "machine/machine.hpp"

#include <algorithm>
#include <cmath>

namespace pshard {
namespace {

// Linear interpolation of log(y) over log(x), clamped at both ends.
double interpolate_log(const std::vector<double>& xs, const std::vector<double>& ys, double x) {
  if (x <= xs.front()) return ys.front();
  if (x >= xs.back()) return ys.back();
  const auto upper = std::upper_bound(xs.begin(), xs.end(), x);
  const auto i = static_cast<size_t>(upper - xs.begin());
  const double t = std::log(x / xs[i - 1]) / std::log(xs[i] / xs[i - 1]);
  return ys[i - 1] * std::pow(ys[i] / ys[i - 1], t);
}

}  // namespace

double RateSeries::rate(double m) const {
  // Fewer rows than ever measured still read the same weights, so the seconds stay and the rate falls in proportion.
  if (m < batch.front()) return flop_per_second.front() * m / batch.front();
  return interpolate_log(batch, flop_per_second, m);
}

double LinkCurve::seconds(double n_bytes, double chunk) const {
  if (n_bytes <= 0.0) return 0.0;
  chunk = std::clamp(chunk, 1.0, n_bytes);
  const double copies = std::ceil(n_bytes / chunk);
  return copies * latency_seconds + n_bytes / interpolate_log(chunk_bytes, bytes_per_second, chunk);
}

}  // namespace pshard
