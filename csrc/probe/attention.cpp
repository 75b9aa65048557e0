#include "probe/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int64_t kQueries = 16;    // whose sums stay near while a block of the cache passes
constexpr int64_t kTiledFrom = 64;  // query tokens; of fewer each goes by itself, cell by cell with sums in F16, as in llama.cpp
constexpr int64_t kCells = 64;      // a block: its keys and values stay in the first-level cache
constexpr int kSamples = 8;
constexpr double kTolerance = 1e-3;  // of the largest value; F16 queries are the same on both sides

int64_t require_positive(int64_t value, const char* name) {
  if (value < 1) throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", must be positive");
  return value;
}

}  // namespace

Attention::Attention(const Kernels& kernels, const AttentionShape& shape, int n_threads)
    : kernels_(kernels), shape_(shape), n_threads_(n_threads) {
  require_positive(shape.depth, "depth");
  require_positive(shape.batch, "batch");
  require_positive(shape.n_kv_heads, "n_kv_heads");
  require_positive(shape.head_size, "head_size");
  if (shape.head_size % 16 != 0) {
    throw std::invalid_argument("head_size is " + std::to_string(shape.head_size) + ", kernels take multiples of 16");
  }
  if (require_positive(shape.n_heads, "n_heads") % shape.n_kv_heads != 0) {
    throw std::invalid_argument("n_heads is " + std::to_string(shape.n_heads) + ", must be a multiple of n_kv_heads, " +
                                std::to_string(shape.n_kv_heads));
  }
  const int64_t n_values = shape.n_heads * shape.batch * shape.head_size;
  queries_ = Buffer(n_values * 2);
  output_ = Buffer(n_values * 4);
  scratch_bytes_ = (kQueries * (kCells + shape.head_size) * 4 + 63) / 64 * 64;
  scratch_ = Buffer(n_threads * scratch_bytes_);
  Random random(static_cast<uint64_t>(shape.depth));
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_size)));
  for (int64_t i = 0; i < n_values; ++i) queries_.as<uint16_t>()[i] = float_to_half(scale * random.next_float());
  spoil_output();
}

int64_t Attention::cache_bytes() const { return 2 * 2 * shape_.depth * shape_.n_kv_heads * shape_.head_size; }

double Attention::n_flop() const {
  return 4.0 * static_cast<double>(shape_.head_size * shape_.n_heads) * static_cast<double>(shape_.batch * shape_.depth);
}

void Attention::start(const uint16_t* cache) {
  cache_ = cache;
  next_.store(0, std::memory_order_relaxed);
}

void Attention::run(int thread) {
  const bool is_tiled = shape_.batch >= kTiledFrom;
  const int64_t at_once = is_tiled ? kQueries : 1;
  const int64_t parts = (shape_.batch + at_once - 1) / at_once;
  uint8_t* scratch = scratch_.data() + thread * scratch_bytes_;
  while (true) {
    const int64_t unit = next_.fetch_add(1, std::memory_order_relaxed);
    if (unit >= parts * shape_.n_heads) return;
    const int64_t first = unit % parts * at_once;
    if (is_tiled) {
      attend(unit / parts, first, std::min(at_once, shape_.batch - first), scratch);
    } else {
      attend_one(unit / parts, first, scratch);
    }
  }
}

void Attention::attend_one(int64_t head, int64_t token, uint8_t* scratch) {
  const int64_t size = shape_.head_size;
  const int64_t cell = shape_.n_kv_heads * size;
  const int64_t kv_head = head / (shape_.n_heads / shape_.n_kv_heads);
  const uint16_t* keys = cache_ + kv_head * size;
  const uint16_t* query = queries_.as<uint16_t>() + (head * shape_.batch + token) * size;
  auto* sums = reinterpret_cast<uint16_t*>(scratch);
  std::fill_n(sums, size, uint16_t{0});
  const float total = kernels_.half_attend(query, {keys, cell, shape_.depth}, {keys + shape_.depth * cell, cell, shape_.depth}, size, sums);
  float* out = output_.as<float>() + (head * shape_.batch + token) * size;
  for (int64_t i = 0; i < size; ++i) out[i] = half_to_float(sums[i]) / total;
}

void Attention::attend(int64_t head, int64_t first, int64_t n, uint8_t* scratch) {
  const int64_t size = shape_.head_size;
  const int64_t cell = shape_.n_kv_heads * size;
  const int64_t kv_head = head / (shape_.n_heads / shape_.n_kv_heads);
  const uint16_t* keys = cache_ + kv_head * size;
  const uint16_t* values = keys + shape_.depth * cell;
  const uint16_t* queries = queries_.as<uint16_t>() + (head * shape_.batch + first) * size;
  auto* scores = reinterpret_cast<float*>(scratch);
  float* sums = scores + kQueries * kCells;
  float largest[kQueries];
  float total[kQueries] = {};
  std::fill_n(largest, kQueries, -std::numeric_limits<float>::infinity());
  std::fill_n(sums, n * size, 0.0F);
  for (int64_t at = 0; at < shape_.depth; at += kCells) {
    const int64_t cells = std::min(kCells, shape_.depth - at);
    kernels_.half_products({keys + at * cell, cell, cells}, {queries, size, n}, size, {scores, kCells, n});
    for (int64_t j = 0; j < n; ++j) {
      float* row = scores + j * kCells;
      const float before = largest[j];
      largest[j] = std::max(before, *std::max_element(row, row + cells));
      if (at > 0 && largest[j] > before) {
        const float shrink = std::exp(before - largest[j]);
        total[j] *= shrink;
        for (int64_t i = 0; i < size; ++i) sums[j * size + i] *= shrink;
      }
      total[j] += kernels_.exp_row(row, cells, largest[j]);
    }
    kernels_.half_mix({scores, kCells, n}, {values + at * cell, cell, cells}, size, {sums, size, n});
  }
  float* out = output_.as<float>() + (head * shape_.batch + first) * size;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < size; ++i) out[j * size + i] = sums[j * size + i] / total[j];
  }
}

void Attention::spoil_output() { std::fill_n(output_.as<float>(), output_.size() / 4, std::numeric_limits<float>::quiet_NaN()); }

std::string Attention::fault() const {
  Random random(2);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random.next() % static_cast<uint64_t>(n)); };
  const int64_t size = shape_.head_size;
  const int64_t cell = shape_.n_kv_heads * size;
  for (int sample = 0; sample < kSamples; ++sample) {
    const int64_t head = below(shape_.n_heads);
    const int64_t token = below(shape_.batch);
    const int64_t i = below(size);
    const uint16_t* query = queries_.as<uint16_t>() + (head * shape_.batch + token) * size;
    const uint16_t* keys = cache_ + head / (shape_.n_heads / shape_.n_kv_heads) * size;
    const uint16_t* values = keys + shape_.depth * cell;
    double total = 0.0;
    double sum = 0.0;
    double magnitude = 0.0;
    for (int64_t at = 0; at < shape_.depth; ++at) {
      double score = 0.0;
      for (int64_t c = 0; c < size; ++c) score += double{half_to_float(query[c])} * half_to_float(keys[at * cell + c]);
      const double share = std::exp(score);  // scores of such queries are small
      const double value = half_to_float(values[at * cell + i]);
      total += share;
      sum += share * value;
      magnitude += share * std::abs(value);
    }
    const double got = output_.as<float>()[(head * shape_.batch + token) * size + i];
    if (!(std::abs(got - sum / total) <= kTolerance * magnitude / total)) {
      return "head " + std::to_string(head) + ", token " + std::to_string(token) + " gave " + std::to_string(got) + ", should be " +
             std::to_string(sum / total);
    }
  }
  return "";
}

}  // namespace pshard
