#include "stream/checks.hpp"

#include <cmath>
#include <vector>

#include "probe/random.hpp"
#include "stream/checksum.hpp"

namespace pshard {
namespace {

constexpr int kSamples = 16;
// Of the root of the sum of squares: rounding to 8 bits changes each term by 0.4 % on average, and the sum by that much of this.
constexpr double kTolerance = 0.03;

}  // namespace

void check_shard(const std::string& what, const uint8_t* arrived, int64_t n_bytes, uint64_t expected) {
  if (checksum(arrived, n_bytes) == expected) return;
  throw StreamError(what + ": the " + std::to_string(n_bytes) + " bytes that are used are not those of its source");
}

void check_product(const std::string& what, const Product& product, const uint8_t* source, const float* x, const float* shown,
                   const Backend& backend) {
  Random random(static_cast<uint64_t>(product.n + product.m));
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random.next() % static_cast<uint64_t>(n)); };
  const int64_t stride = row_bytes(product.type, product.k);
  std::vector<double> weights(static_cast<size_t>(product.k));
  for (int sample = 0; sample < kSamples; ++sample) {
    const int64_t i = below(product.m);  // place among the rows sorted by expert
    const int64_t column = below(product.n);
    int64_t x_row = i;
    int64_t y_row = i;
    const uint8_t* matrix = source;
    if (const Routes* routes = product.routes) {
      const int32_t row = routes->rows[static_cast<size_t>(i)];
      x_row = product.has_own_rows ? row : row / routes->n_used;
      y_row = backend.y_row(product, i);
      matrix += routes->expert[static_cast<size_t>(row)] * product.n * stride;
    }
    dequantise_row(product.type, matrix + column * stride, product.k, weights.data());
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t c = 0; c < product.k; ++c) {
      const double term = weights[static_cast<size_t>(c)] * static_cast<double>(x[x_row * product.k + c]);
      sum += term;
      squares += term * term;
    }
    const double got = static_cast<double>(shown[y_row * product.n + column]);
    if (std::abs(got - sum) <= kTolerance * std::sqrt(squares)) continue;
    throw StreamError(what + ": output " + std::to_string(column) + " of row " + std::to_string(y_row) + " is " + std::to_string(got) +
                      ", should be " + std::to_string(sum));
  }
}

}  // namespace pshard
