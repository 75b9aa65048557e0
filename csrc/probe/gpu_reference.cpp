#include "probe/gpu_reference.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "probe/gpu_shapes.hpp"
#include "probe/random.hpp"

namespace pshard {
namespace {

// Of the sum of magnitudes. Sums in single precision stay well below the first; shares of attention are rounded to halves in tiles.
constexpr double kTolerance = 1e-4, kHalfTolerance = 1e-3;
constexpr int64_t kRounded = 32;
constexpr double kLog2E = 1.44269504088896340736;

// Calls `fault_at` with indices below n until it finds a fault.
template <typename FaultAt>
std::string first_fault(int64_t n, int64_t n_samples, FaultAt fault_at) {
  Random random(1);
  for (int64_t i = 0; i < std::min(n, n_samples); ++i) {
    const int64_t index = n_samples >= n ? i : static_cast<int64_t>(random.next() % static_cast<uint64_t>(n));
    std::string fault = fault_at(index);
    if (!fault.empty()) return fault;
  }
  return "";
}

std::string compare(double got, const Expected& expected, double tolerance, const std::string& what) {
  if (std::abs(got - expected.sum) <= tolerance * expected.magnitude) return "";
  return what + " gave " + std::to_string(got) + ", should be " + std::to_string(expected.sum);
}

double as_half(double value) { return half_to_float(float_to_half(static_cast<float>(value))); }

// As kernels round activations: to a byte with a scale per 32, to halves, or not at all.
std::vector<double> rounded(const float* x, int64_t n_columns, GpuRounding rounding) {
  std::vector<double> values(x, x + n_columns);
  if (rounding == GpuRounding::none) return values;
  if (rounding == GpuRounding::halves) {
    std::transform(values.begin(), values.end(), values.begin(), as_half);
    return values;
  }
  for (auto block = values.begin(); block != values.end(); block += kRounded) {
    double largest = 0.0;
    std::for_each(block, block + kRounded, [&](double value) { largest = std::max(largest, std::abs(value)); });
    if (largest == 0.0) continue;
    const float inverse = 127.0F / static_cast<float>(largest);
    const double scale = static_cast<float>(largest) / 127.0F;
    std::transform(block, block + kRounded, block,
                   [&](double value) { return scale * std::nearbyint(static_cast<float>(value) * inverse); });
  }
  return values;
}

Expected expected_of_output(WeightType type, const ProductLayout& layout, const uint8_t* weights_row, const float* x, int64_t n_columns) {
  std::vector<double> weights(static_cast<std::size_t>(n_columns));
  dequantise_row(type, weights_row, n_columns, weights.data());
  if (layout.rounding == GpuRounding::halves) std::transform(weights.begin(), weights.end(), weights.begin(), as_half);
  const std::vector<double> values = rounded(x, n_columns, layout.rounding);
  Expected expected;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    expected.sum += weights[i] * values[i];
    expected.magnitude += std::abs(weights[i] * values[i]);
  }
  return expected;
}

std::string row_text(int64_t row, int64_t of) { return "row " + std::to_string(row) + " of the weights, row " + std::to_string(of); }

}  // namespace

Expected expected_of_product(const GpuProduct& shape, const uint8_t* weights, const float* x, int64_t index) {
  const uint8_t* row = weights + index % shape.n_rows * row_bytes(shape.type, shape.n_columns);
  return expected_of_output(shape.type, layout_of(shape), row, x + index / shape.n_rows * shape.n_columns, shape.n_columns);
}

std::string fault_of_product(const GpuProduct& shape, const uint8_t* weights, const float* x, const float* y, int64_t n_samples) {
  return first_fault(shape.batch * shape.n_rows, n_samples, [&](int64_t index) {
    return compare(y[index], expected_of_product(shape, weights, x, index), kTolerance,
                   row_text(index % shape.n_rows, index / shape.n_rows) + " of the activations");
  });
}

Expected expected_of_experts(const GpuExperts& shape, const uint8_t* weights, const int32_t* ids, const float* x, int64_t index) {
  const int64_t out = index / shape.n_rows;
  const uint8_t* row = weights + (ids[out] * shape.n_rows + index % shape.n_rows) * row_bytes(shape.type, shape.n_columns);
  return expected_of_output(shape.type, layout_of(shape), row, x + (shape.has_own_rows ? out : out / shape.n_used) * shape.n_columns,
                            shape.n_columns);
}

std::string fault_of_experts(const GpuExperts& shape, const uint8_t* weights, const int32_t* ids, const float* x, const float* y,
                             int64_t n_samples) {
  return first_fault(shape.batch * shape.n_used * shape.n_rows, n_samples, [&](int64_t index) {
    const int64_t out = index / shape.n_rows;
    return compare(y[index], expected_of_experts(shape, weights, ids, x, index), kTolerance,
                   row_text(index % shape.n_rows, out) + " of the outputs, expert " + std::to_string(ids[out]));
  });
}

Expected expected_of_attention(const AttentionShape& shape, bool is_causal, const float* queries, const uint16_t* keys,
                               const uint16_t* values, int64_t index) {
  const bool is_split = layout_of(shape).is_split;
  const int64_t size = shape.head_size;
  const int64_t i = index % size;
  const int64_t head = index / size % shape.n_heads;
  const int64_t token = index / size / shape.n_heads;
  const int64_t offset = head / (shape.n_heads / shape.n_kv_heads) * size;
  const double scale = kLog2E / std::sqrt(static_cast<double>(size));
  std::vector<double> query(queries + index - i, queries + index - i + size);
  for (double& value : query) value = is_split ? value * scale : as_half(value * scale);
  std::vector<double> scores(static_cast<std::size_t>(is_causal ? shape.depth - shape.batch + token + 1 : shape.depth));
  const auto cell_at = [&](std::size_t cell) { return static_cast<int64_t>(cell) * shape.n_kv_heads * size + offset; };
  for (std::size_t cell = 0; cell < scores.size(); ++cell) {
    for (std::size_t c = 0; c < query.size(); ++c) scores[cell] += query[c] * half_to_float(keys[cell_at(cell) + static_cast<int64_t>(c)]);
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double total = 0.0;
  Expected expected;
  for (std::size_t cell = 0; cell < scores.size(); ++cell) {
    const double share = std::exp2(scores[cell] - largest);
    const double value = half_to_float(values[cell_at(cell) + i]);
    total += share;
    expected.sum += share * value;
    expected.magnitude += share * std::abs(value);
  }
  return {expected.sum / total, expected.magnitude / total};
}

std::string fault_of_attention(const AttentionShape& shape, bool is_causal, const float* queries, const uint16_t* keys,
                               const uint16_t* values, const float* out, int64_t n_samples) {
  const double tolerance = layout_of(shape).is_split ? kTolerance : kHalfTolerance;
  return first_fault(shape.batch * shape.n_heads * shape.head_size, n_samples, [&](int64_t index) {
    return compare(out[index], expected_of_attention(shape, is_causal, queries, keys, values, index), tolerance,
                   "value " + std::to_string(index % shape.head_size) + " of head " +
                       std::to_string(index / shape.head_size % shape.n_heads) + ", token " +
                       std::to_string(index / shape.head_size / shape.n_heads));
  });
}

std::vector<int32_t> random_experts(const GpuExperts& shape, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> all(static_cast<std::size_t>(shape.n_experts));
  std::iota(all.begin(), all.end(), 0);
  std::vector<int32_t> ids;
  for (int64_t token = 0; token < shape.batch; ++token) {
    for (std::size_t used = 0; used < static_cast<std::size_t>(shape.n_used); ++used) {
      std::swap(all[used], all[used + random.next() % (all.size() - used)]);
      ids.push_back(all[used]);
    }
  }
  return ids;
}

}  // namespace pshard
