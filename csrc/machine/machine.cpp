#include "machine/machine.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

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

[[noreturn]] void refuse(const std::string& field, const std::string& problem) {
  throw std::invalid_argument("machine: " + field + " " + problem + "; correct the profile it was built from");
}

void check_positive(const std::string& field, double value) {
  if (!(value > 0.0) || !std::isfinite(value)) refuse(field, "is " + std::to_string(value) + ", not positive and finite");
}

void check_not_negative(const std::string& field, double value) {
  if (!(value >= 0.0) || !std::isfinite(value)) refuse(field, "is " + std::to_string(value) + ", negative or not finite");
}

void check_fraction(const std::string& field, double value) {
  if (!(value > 0.0 && value <= 1.0)) refuse(field, "is " + std::to_string(value) + ", not above 0 and at most 1");
}

void check_curve(const std::string& field, const std::vector<double>& xs, const std::vector<double>& ys) {
  if (xs.empty() || xs.size() != ys.size()) {
    refuse(field, "has " + std::to_string(xs.size()) + " points and " + std::to_string(ys.size()) + " rates");
  }
  for (size_t i = 0; i < xs.size(); ++i) {
    check_positive(field + " rate " + std::to_string(i), ys[i]);
    check_positive(field + " point " + std::to_string(i), xs[i]);
    if (i > 0 && xs[i] <= xs[i - 1]) refuse(field, "does not ascend at point " + std::to_string(i));
  }
}

void check_series(const std::string& field, const RateSeries& series) {
  check_not_negative(field + ".spread", series.spread);
  if (!series.empty() || !series.flop_per_second.empty()) check_curve(field, series.batch, series.flop_per_second);
}

void check_shapes(const std::string& field, const std::vector<ShapeRates>& shapes) {
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::string name = field + "[" + std::to_string(i) + "]";
    if (shapes[i].series.empty()) refuse(name, "has no rates");
    check_series(name, shapes[i].series);
  }
}

void check_attention(const std::string& field, const AttentionTable& table) {
  double depth_before = 0.0;
  for (const AttentionRates& at_depth : table) {
    const std::string name = field + " at depth " + std::to_string(at_depth.depth);
    if (at_depth.rates.empty()) refuse(name, "has no rate");
    check_series(name, at_depth.rates);
    check_not_negative(name + ".first_bytes_per_second", at_depth.first_bytes_per_second);
    if (!(at_depth.depth > depth_before)) refuse(name, "does not ascend from a positive depth");
    depth_before = at_depth.depth;
  }
}

void check_processor(const std::string& field, const Processor& processor) {
  check_positive(field + ".memory_bytes_per_second", processor.memory_bytes_per_second);
  check_positive(field + ".memory_peak_bytes_per_second", processor.memory_peak_bytes_per_second);
  check_positive(field + ".peak_flop_per_second", processor.peak_flop_per_second);
  check_not_negative(field + ".op_seconds", processor.op_seconds);
  check_not_negative(field + ".spread", processor.spread);
  if (processor.n_threads < 1) refuse(field + ".n_threads", "is " + std::to_string(processor.n_threads) + ", not at least 1");
  for (size_t type = 0; type < processor.mul_mat.size(); ++type) {
    check_series(field + ".mul_mat[" + std::to_string(type) + "]", processor.mul_mat[type]);
    check_series(field + ".mul_mat_id[" + std::to_string(type) + "]", processor.mul_mat_id[type]);
  }
  check_series(field + ".mamba", processor.mamba);
  check_series(field + ".mamba2", processor.mamba2);
  check_series(field + ".delta_net", processor.delta_net);
  check_shapes(field + ".shapes", processor.shapes);
  check_shapes(field + ".copied_shapes", processor.copied_shapes);
  check_attention(field + ".attention", processor.attention);
  for (size_t type = 0; type < processor.attention_by_query.size(); ++type) {
    check_attention(field + ".attention_by_query[" + std::to_string(type) + "]", processor.attention_by_query[type]);
  }
}

void check_link(const std::string& field, const LinkCurve& curve) {
  check_curve(field, curve.chunk_bytes, curve.bytes_per_second);
  check_not_negative(field + ".latency_seconds", curve.latency_seconds);
  check_positive(field + ".peak_bytes_per_second", curve.peak_bytes_per_second);
  const double fastest = *std::max_element(curve.bytes_per_second.begin(), curve.bytes_per_second.end());
  if (fastest > curve.peak_bytes_per_second) {
    refuse(field,
           "reaches " + std::to_string(fastest) + " bytes/s, above peak_bytes_per_second = " + std::to_string(curve.peak_bytes_per_second));
  }
  check_not_negative(field + ".spread", curve.spread);
}

}  // namespace

double RateSeries::rate(double m) const {
  // Fewer rows than ever measured still read the same weights, so the seconds stay and the rate falls in proportion.
  if (m < batch.front()) return flop_per_second.front() * m / batch.front();
  return interpolate_log(batch, flop_per_second, m);
}

double AttentionRates::seconds(double flop, double cache_bytes, double n_query_tokens) const {
  const double first_reads = first_bytes_per_second > 0.0 ? cache_bytes / first_bytes_per_second : 0.0;
  return flop / rates.rate(n_query_tokens) + first_reads;
}

double attention_seconds(const AttentionTable& table, double flop, double cache_bytes, double n_query_tokens, double depth) {
  const auto deeper = std::find_if(table.begin(), table.end(), [&](const AttentionRates& at) { return at.depth >= depth; });
  const AttentionRates& above = deeper == table.end() ? table.back() : *deeper;
  const double seconds = above.seconds(flop, cache_bytes, n_query_tokens);
  if (deeper == table.begin() || deeper == table.end()) return seconds;
  const AttentionRates& below = *(deeper - 1);
  const double t = std::log(depth / below.depth) / std::log(above.depth / below.depth);
  return std::pow(below.seconds(flop, cache_bytes, n_query_tokens), 1.0 - t) * std::pow(seconds, t);
}

double LinkCurve::seconds(double n_bytes, double chunk) const {
  if (n_bytes <= 0.0 || chunk_bytes.empty()) return 0.0;
  chunk = std::clamp(chunk, 1.0, n_bytes);
  const double copies = std::ceil(n_bytes / chunk);
  const double rate = std::min(interpolate_log(chunk_bytes, bytes_per_second, chunk), peak_bytes_per_second);
  return copies * latency_seconds + n_bytes / rate;
}

void check(const Machine& machine) {
  check_processor("cpu", machine.cpu);
  check_positive("host_bytes_per_second", machine.host_bytes_per_second);
  if (machine.ram_bytes <= 0) refuse("ram_bytes", "is " + std::to_string(machine.ram_bytes) + ", not positive");
  if (!machine.has_gpu) return;
  check_processor("gpu", machine.gpu);
  check_link("up", machine.up);
  check_link("down", machine.down);
  if (machine.vram_bytes <= 0) refuse("vram_bytes", "is " + std::to_string(machine.vram_bytes) + ", not positive");
  if (machine.page_lock_bytes < 0) refuse("page_lock_bytes", "is " + std::to_string(machine.page_lock_bytes) + ", negative");
  if (machine.copy_engines < 1) refuse("copy_engines", "is " + std::to_string(machine.copy_engines) + ", not at least 1");
  check_positive("pageable_bytes_per_second", machine.pageable_bytes_per_second);
  check_not_negative("handoff_to_gpu_seconds", machine.handoff_to_gpu_seconds);
  check_not_negative("handoff_to_cpu_seconds", machine.handoff_to_cpu_seconds);
  check_fraction("cpu_rate_under_copy", machine.cpu_rate_under_copy);
  check_fraction("copy_rate_under_cpu", machine.copy_rate_under_cpu);
  check_fraction("gpu_rate_under_copy", machine.gpu_rate_under_copy);
  check_fraction("copy_rate_under_gpu", machine.copy_rate_under_gpu);
}

}  // namespace pshard
