#include "probe/scan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int kSamples = 8;
constexpr double kTolerance = 1e-3;  // inputs, states, keys and queries are at most 1, or of length 1
constexpr float kLeastStep = 0.05F;

int64_t require_positive(int64_t value, const char* name) {
  if (value < 1) throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", must be positive");
  return value;
}

float between_zero_and_one(Random& random) { return 0.5F + 0.5F * random.next_float(); }

// Rows of length one: a delta rule with longer keys would grow without bound.
void fill_with_units(Random& random, int64_t n_rows, int64_t n_columns, float* out) {
  for (float* row = out; row < out + n_rows * n_columns; row += n_columns) {
    double square = 0.0;
    for (int64_t i = 0; i < n_columns; ++i) {
      row[i] = random.next_float();
      square += static_cast<double>(row[i]) * row[i];
    }
    for (int64_t i = 0; i < n_columns; ++i) row[i] /= static_cast<float>(std::sqrt(square) + 1e-9);
  }
}

}  // namespace

Scan::Scan(const Kernels& kernels, const ScanShape& shape, int n_threads) : kernels_(kernels), shape_(shape), n_threads_(n_threads) {
  const int64_t n_steps = require_positive(shape.batch, "batch") * require_positive(shape.n_heads, "n_heads");
  const int64_t n_columns = require_positive(shape.n_columns, "n_columns");
  require_positive(shape.n_rows, "n_rows");
  if (n_columns % kScanColumns != 0 && shape.kind != ScanKind::mamba) {
    throw std::invalid_argument("n_columns is " + std::to_string(n_columns) + ", kernels take multiples of " +
                                std::to_string(kScanColumns));
  }
  Random random(static_cast<uint64_t>(n_steps));
  inputs_ = Buffer(n_steps * shape.n_rows * 4);
  for (int64_t i = 0; i < n_steps * shape.n_rows; ++i) inputs_.as<float>()[i] = random.next_float();
  const int64_t n_keys = shape.batch * n_key_heads();
  for (Buffer* keys : {&keys_, &queries_}) {
    *keys = Buffer(n_keys * n_columns * 4);
    fill_with_units(random, n_keys, n_columns, keys->as<float>());
  }
  steps_ = Buffer(n_steps * 4);
  for (int64_t i = 0; i < n_steps; ++i) steps_.as<float>()[i] = std::max(kLeastStep, between_zero_and_one(random));
  rates_ = Buffer(shape.n_heads * n_columns * 4);
  for (int64_t i = 0; i < shape.n_heads * n_columns; ++i) rates_.as<float>()[i] = -between_zero_and_one(random);
  after_ = Buffer(state_bytes());
  output_ = Buffer(n_steps * shape.n_rows * 4);
  rooms_ = Buffer(n_threads * shape.n_rows * 4);
  spoil_output();
}

int64_t Scan::head_bytes() const { return shape_.n_rows * shape_.n_columns * 4; }

int64_t Scan::state_bytes() const { return shape_.n_heads * head_bytes(); }

double Scan::n_flop() const { return 6.0 * static_cast<double>(state_bytes() / 4) * static_cast<double>(shape_.batch); }

const float* Scan::key_of(const Buffer& keys, int64_t head, int64_t token) const {
  return keys.as<float>() + (token * n_key_heads() + (n_key_heads() > 1 ? head : 0)) * shape_.n_columns;
}

void Scan::start(const float* state) { before_ = state; }

void Scan::run(int thread) {
  const int64_t share = (shape_.n_heads + n_threads_ - 1) / n_threads_;
  const int64_t end = std::min((thread + 1) * share, shape_.n_heads);
  float* room = rooms_.as<float>() + thread * shape_.n_rows;
  for (int64_t token = 0; token < shape_.batch; ++token) {
    for (int64_t head = thread * share; head < end; ++head) scan_head(head, token, room);
  }
}

void Scan::scan_head(int64_t head, int64_t token, float* room) {
  const int64_t step = token * shape_.n_heads + head;
  float* after = after_.as<float>() + head * head_bytes() / 4;
  const float* before = token == 0 ? before_ + head * head_bytes() / 4 : after;
  const float* rates = rates_.as<float>() + head * shape_.n_columns;
  const float* key = key_of(keys_, head, token);
  const float* query = key_of(queries_, head, token);
  const float* input = inputs_.as<float>() + step * shape_.n_rows;
  float* out = output_.as<float>() + step * shape_.n_rows;
  const float by = steps_.as<float>()[step];
  const StateRows state{before, after, shape_.n_rows, shape_.n_columns};
  switch (shape_.kind) {
    case ScanKind::mamba:
      // One element after the other, as in llama.cpp.
      for (int64_t row = 0; row < shape_.n_rows; ++row) {
        float sum = 0.0F;
        for (int64_t i = 0; i < shape_.n_columns; ++i) {
          const int64_t at = row * shape_.n_columns + i;
          after[at] = before[at] * std::exp(by * rates[i]) + key[i] * input[row] * by;
          sum += after[at] * query[i];
        }
        out[row] = sum;
      }
      break;
    case ScanKind::mamba2:
      for (int64_t row = 0; row < shape_.n_rows; ++row) room[row] = input[row] * by;
      kernels_.decay_rows(state, std::exp(by * rates[0]), room, key, query, out);
      break;
    case ScanKind::delta_net:
      kernels_.delta_rows(state, std::exp(rates[0]), input, by, key, query, room, out);
      break;
  }
}

void Scan::spoil_output() { std::fill_n(output_.as<float>(), output_.size() / 4, std::numeric_limits<float>::quiet_NaN()); }

// What the last token gives. Rows do not know each other.
double Scan::reference(int64_t head, int64_t row) const {
  const int64_t n = shape_.n_columns;
  const float* before = before_ + (head * shape_.n_rows + row) * n;
  std::vector<double> state(before, before + n);
  const float* rates = rates_.as<float>() + head * n;
  double out = 0.0;
  for (int64_t token = 0; token < shape_.batch; ++token) {
    const int64_t step = token * shape_.n_heads + head;
    const float* key = key_of(keys_, head, token);
    const float* query = key_of(queries_, head, token);
    const double by = steps_.as<float>()[step];
    const double input = inputs_.as<float>()[step * shape_.n_rows + row];
    double product = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const double rate = rates[shape_.kind == ScanKind::mamba ? i : 0];
      state[static_cast<std::size_t>(i)] *= std::exp(shape_.kind == ScanKind::delta_net ? rate : by * rate);
      product += state[static_cast<std::size_t>(i)] * key[i];
    }
    const double written = by * (shape_.kind == ScanKind::delta_net ? input - product : input);
    out = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      state[static_cast<std::size_t>(i)] += written * key[i];
      out += state[static_cast<std::size_t>(i)] * query[i];
    }
  }
  return out;
}

std::string Scan::fault() const {
  Random random(2);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random.next() % static_cast<uint64_t>(n)); };
  for (int sample = 0; sample < kSamples; ++sample) {
    const int64_t head = below(shape_.n_heads);
    const int64_t row = below(shape_.n_rows);
    const double expected = reference(head, row);
    const double got = output_.as<float>()[((shape_.batch - 1) * shape_.n_heads + head) * shape_.n_rows + row];
    if (!(std::abs(got - expected) <= kTolerance)) {
      return "head " + std::to_string(head) + ", output " + std::to_string(row) + " gave " + std::to_string(got) + ", should be " +
             std::to_string(expected);
    }
  }
  return "";
}

}  // namespace pshard
