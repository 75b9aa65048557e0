#include "probe/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "probe/random.hpp"

namespace pshard {
namespace {

// As in llama.cpp: over F16, from so many query tokens on in tiles of as many, each read of a block of the cache serving all of them. Fewer
// go by themselves, cell by cell, with sums in F16. A single one's cells are shared among the threads, where there are so many. Over all
// other caches every token goes by itself, its values decoded one by one and summed in F32.
constexpr int64_t kTile = 64;
constexpr int64_t kSplitFrom = 512;
constexpr int64_t kCells = 64;  // a block: its keys and values stay in the first-level cache
constexpr int kSamples = 8;
constexpr double kTolerance = 1e-3;  // of the mean magnitude; F16 queries are the same on both sides
// A sum in F16 is rounded at each cell, by at most 2^-11 of what it has reached and by 1 / sqrt(3) of that on average (root mean square);
// the roundings add up like independent ones, and six times their deviation is never seen.
constexpr double kRounding = 6.0 / 2048.0 / 1.7320508;

int64_t require_positive(int64_t value, const char* name) {
  if (value < 1) throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", must be positive");
  return value;
}

float scale_of(const AttentionShape& shape) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_size))); }

const AttentionShape& checked(const Kernels& kernels, const AttentionShape& shape) {
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
  if (kernels.dot.of(shape.key_type) == nullptr) {
    throw std::invalid_argument("key_type is " + name_of(shape.key_type) + ", for which attention has no kernel");
  }
  if (shape.value_type != WeightType::f16 && decode_row(shape.value_type) == nullptr) {
    throw std::invalid_argument("value_type is " + name_of(shape.value_type) + ", for which attention has no kernel");
  }
  return shape;
}

}  // namespace

Attention::Attention(const Kernels& kernels, const AttentionShape& shape, int n_threads)
    : kernels_(kernels),
      shape_(checked(kernels, shape)),
      n_threads_(n_threads),
      key_bytes_(row_bytes(shape.key_type, shape.head_size)),
      value_bytes_(row_bytes(shape.value_type, shape.head_size)),
      splits_cells_(shape.batch == 1 && shape.depth >= kSplitFrom && is_half()),
      queries_(shape.key_type, shape.n_heads * shape.batch, shape.head_size),
      query_scale_(is_tiled() ? scale_of(shape) : 1.0F),
      score_scale_(is_tiled() ? 1.0F : scale_of(shape)),
      barrier_(n_threads) {
  const int64_t n_values = shape.n_heads * shape.batch * shape.head_size;
  mask_ = Buffer(shape.depth * 2);
  std::fill_n(mask_.as<uint16_t>(), shape.depth, uint16_t{0});
  output_ = Buffer(n_values * 4);
  scratch_bytes_ = kTile * (kCells + shape.head_size) * 4;
  scratch_ = Buffer(n_threads * scratch_bytes_);
  const int64_t n_slots = n_threads * (splits_cells_ ? shape.n_heads : 1);
  sums_ = Buffer(n_slots * shape.head_size * 4);
  shares_.resize(static_cast<std::size_t>(n_slots));
  Random random(static_cast<uint64_t>(shape.depth));
  std::vector<float> query(static_cast<std::size_t>(shape.head_size));
  for (int64_t row = 0; row < queries_.n_rows; ++row) {
    for (float& value : query) value = query_scale_ * random.next_float();
    queries_.quantise(row, query.data());
  }
  spoil_output();
}

int64_t Attention::cache_bytes() const { return shape_.depth * shape_.n_kv_heads * (key_bytes_ + value_bytes_); }

double Attention::n_flop() const {
  return 4.0 * static_cast<double>(shape_.head_size * shape_.n_heads) * static_cast<double>(shape_.batch * shape_.depth);
}

void Attention::start(const uint8_t* cache) {
  cache_ = cache;
  next_.store(0, std::memory_order_relaxed);
}

bool Attention::is_half() const { return shape_.key_type == WeightType::f16 && shape_.value_type == WeightType::f16; }

bool Attention::is_tiled() const { return is_half() && shape_.batch >= kTile; }

const uint8_t* Attention::key(int64_t cell, int64_t head) const {
  return cache_ + (cell * shape_.n_kv_heads + head / (shape_.n_heads / shape_.n_kv_heads)) * key_bytes_;
}

const uint8_t* Attention::value(int64_t cell, int64_t head) const {
  const uint8_t* values = cache_ + shape_.depth * shape_.n_kv_heads * key_bytes_;
  return values + (cell * shape_.n_kv_heads + head / (shape_.n_heads / shape_.n_kv_heads)) * value_bytes_;
}

void Attention::run(int thread) {
  if (splits_cells_) {
    attend_part(thread);
    return;
  }
  const int64_t at_once = is_tiled() ? kTile : 1;
  const int64_t parts = (shape_.batch + at_once - 1) / at_once;
  while (true) {
    const int64_t unit = next_.fetch_add(1, std::memory_order_relaxed);
    if (unit >= parts * shape_.n_heads) return;
    const int64_t head = unit / parts;
    const int64_t first = unit % parts * at_once;
    if (is_tiled()) {
      attend_tile(head, first, std::min(at_once, shape_.batch - first), scratch_.data() + thread * scratch_bytes_);
    } else {
      attend_cells(thread, {head, first, 0, shape_.depth}, thread);
      join(head, first, thread, 1, 0);
    }
  }
}

void Attention::attend_part(int thread) {
  const int64_t share = (shape_.depth + n_threads_ - 1) / n_threads_;
  const int64_t first = std::min(thread * share, shape_.depth);
  const int64_t n = std::min(share, shape_.depth - first);
  for (int64_t head = 0; head < shape_.n_heads; ++head) attend_cells(thread, {head, 0, first, n}, thread * shape_.n_heads + head);
  if (n_threads_ > 1) barrier_.wait();
  for (int64_t head = thread; head < shape_.n_heads; head += n_threads_) join(head, 0, head, n_threads_, shape_.n_heads);
}

// Leaves the sums of one query over some cells in a slot.
void Attention::attend_cells(int thread, const Part& part, int64_t slot) {
  const int64_t size = shape_.head_size;
  float* floats = sums_.as<float>() + slot * size;
  std::fill_n(floats, size, 0.0F);
  Softmax& share = shares_[static_cast<std::size_t>(slot)];
  share = {-std::numeric_limits<float>::infinity(), 0.0F};
  if (part.n == 0) return;
  const Cells cells{
      {key(part.first, part.head), shape_.n_kv_heads * key_bytes_, part.n},
      {value(part.first, part.head), shape_.n_kv_heads * value_bytes_, part.n},
      mask_.as<uint16_t>() + part.first,
      kernels_.dot.of(shape_.key_type),
      decode_row(shape_.value_type),
  };
  auto* room = reinterpret_cast<float*>(scratch_.data() + thread * scratch_bytes_);
  const Query query{queries_, part.head * shape_.batch + part.token, score_scale_, 0.0F, 1.0F};
  share = kernels_.attend(query, cells, size, {reinterpret_cast<uint16_t*>(floats), floats, room});
}

// Output of one query from its slots, `stride` from each to the next.
void Attention::join(int64_t head, int64_t token, int64_t slot, int64_t n_slots, int64_t stride) {
  const auto share_of = [&](int64_t part) { return shares_[static_cast<std::size_t>(slot + part * stride)]; };
  float largest = share_of(0).largest;
  for (int64_t part = 1; part < n_slots; ++part) largest = std::max(largest, share_of(part).largest);
  float total = 0.0F;
  for (int64_t part = 0; part < n_slots; ++part) total += std::exp(share_of(part).largest - largest) * share_of(part).sum;
  const int64_t size = shape_.head_size;
  float* out = output_.as<float>() + (head * shape_.batch + token) * size;
  std::fill_n(out, size, 0.0F);
  for (int64_t part = 0; part < n_slots; ++part) {
    const float* floats = sums_.as<float>() + (slot + part * stride) * size;
    const auto* halves = reinterpret_cast<const uint16_t*>(floats);
    const float factor = std::exp(share_of(part).largest - largest) / total;
    const bool in_halves = shape_.value_type == WeightType::f16;
    for (int64_t i = 0; i < size; ++i) out[i] += factor * (in_halves ? half_to_float(halves[i]) : floats[i]);
  }
}

void Attention::attend_tile(int64_t head, int64_t first, int64_t n, uint8_t* scratch) {
  const int64_t size = shape_.head_size;
  const int64_t cell = shape_.n_kv_heads * size;
  const auto* keys = reinterpret_cast<const uint16_t*>(key(0, head));
  const auto* values = reinterpret_cast<const uint16_t*>(value(0, head));
  const uint16_t* queries = queries_.halves + (head * shape_.batch + first) * size;
  auto* scores = reinterpret_cast<float*>(scratch);
  float* sums = scores + kTile * kCells;
  float largest[kTile];
  float total[kTile] = {};
  std::fill_n(largest, kTile, -std::numeric_limits<float>::infinity());
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
  std::vector<double> key_row(static_cast<std::size_t>(size));
  std::vector<double> value_row(key_row.size());
  for (int sample = 0; sample < kSamples; ++sample) {
    const int64_t head = below(shape_.n_heads);
    const int64_t token = below(shape_.batch);
    const int64_t i = below(size);
    double total = 0.0;
    double sum = 0.0;
    double magnitude = 0.0;
    double squares = 0.0;  // of the sum at each cell
    for (int64_t at = 0; at < shape_.depth; ++at) {
      dequantise_row(shape_.key_type, key(at, head), size, key_row.data());
      dequantise_row(shape_.value_type, value(at, head), size, value_row.data());
      double score = 0.0;
      for (int64_t c = 0; c < size; ++c) {
        score += queries_.value(head * shape_.batch + token, c) * key_row[static_cast<std::size_t>(c)];
      }
      const double share = std::exp(double{score_scale_} * score);  // scores of such queries are small
      const double number = value_row[static_cast<std::size_t>(i)];
      total += share;
      sum += share * number;
      magnitude += share * std::abs(number);
      squares += sum * sum;
    }
    const bool in_halves = !is_tiled() && shape_.value_type == WeightType::f16;
    const double rounding = !in_halves ? 0.0 : kRounding * std::sqrt(squares);
    const double got = output_.as<float>()[(head * shape_.batch + token) * size + i];
    if (!(std::abs(got - sum / total) <= (kTolerance * magnitude + rounding) / total)) {
      return "head " + std::to_string(head) + ", token " + std::to_string(token) + " gave " + std::to_string(got) + ", should be " +
             std::to_string(sum / total);
    }
  }
  return "";
}

}  // namespace pshard
