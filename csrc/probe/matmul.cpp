#include "probe/matmul.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int64_t kChunksPerThread = 4;  // so that a thread that falls behind leaves its share to others
constexpr int64_t kWholeRows = 16;       // the largest group or panel
constexpr int64_t kExpertChunk = 16;     // rows without tiles, and of their activations, that a thread multiplies before it takes the next
constexpr int kSamples = 64;
constexpr double kTolerance = 1e-4;  // of the sum of magnitudes; sums in single precision stay well below

MultiplyRows kernel_for(const Kernels& kernels, WeightType type, Layout layout) {
  const MultiplyRows kernel = kernels.multiply.of(type, layout);
  if (kernel != nullptr) return kernel;
  if (!cpu_multiplies(type)) throw std::invalid_argument("no kernel multiplies " + name_of(type) + ", only " + names_of(cpu_multiplies));
  throw std::invalid_argument(name_of(type) + " has no interleaved layout, only " + names_of(cpu_interleaves));
}

int64_t parts_of(int64_t n, int64_t part) { return (n + part - 1) / part; }
int64_t up_to(int64_t n, int64_t whole) { return parts_of(n, whole) * whole; }

int64_t rows_per_chunk(int64_t n_rows, int n_threads) {
  return std::min(up_to(parts_of(n_rows, n_threads * kChunksPerThread), kWholeRows), kRowsPerCall);
}

// Blocks of 256 columns as they lie in a file are multiplied in panels either way; for some others there are no tiles at all.
bool goes_row_by_row(WeightType type, Layout layout, Routing routing) {
  if (layout == Layout::interleaved) return routing == Routing::experts;
  if (type == WeightType::q4_1 || type == WeightType::q5_1 || type == WeightType::mxfp4) return true;
  return routing == Routing::experts && format_of(type).rounding != Rounding::by_256;
}

}  // namespace

Matmul::Matmul(const Kernels& kernels, WeightType type, Layout layout, int64_t n_rows, int64_t n_columns, int64_t batch, int n_threads,
               Routing routing)
    : type_(type),
      multiply_(kernel_for(kernels, type, layout)),
      n_rows_(n_rows),
      n_columns_(n_columns),
      batch_(batch),
      n_threads_(n_threads),
      weight_bytes_(n_rows * row_bytes(type, n_columns)),
      at_once_(goes_row_by_row(type, layout, routing) ? 1 : batch),
      chunk_rows_(rows_per_chunk(n_rows, n_threads)),
      chunk_batch_(batch),
      has_own_chunks_(routing == Routing::experts && layout == Layout::interleaved),
      input_(batch * n_columns * static_cast<int64_t>(sizeof(float))),
      scratch_(n_threads * kScratchBytes),
      activations_(type, batch, n_columns, layout),
      barrier_(n_threads) {
  if (n_rows < 1 || batch < 1) throw std::invalid_argument("a product needs at least one row of weights and one of activations");
  if (n_columns % 32 != 0) throw std::invalid_argument("n_columns is " + std::to_string(n_columns) + ", kernels take multiples of 32");
  if (layout == Layout::interleaved && n_rows % kGroupRows != 0) {
    throw std::invalid_argument("n_rows is " + std::to_string(n_rows) + ", interleaving takes groups of " + std::to_string(kGroupRows));
  }
  if (has_own_chunks_) {
    chunk_rows_ = up_to(parts_of(n_rows, n_threads), kGroupRows);
  } else if (at_once_ == 1 && batch > 1) {
    chunk_rows_ = chunk_batch_ = kExpertChunk;
  }
  Random random(static_cast<uint64_t>(batch));
  for (int64_t i = 0; i < batch * n_columns; ++i) input()[i] = random.next_float();
}

void Matmul::start(std::vector<const uint8_t*> weights) {
  const int64_t bytes = static_cast<int64_t>(weights.size()) * batch_ * n_rows_ * static_cast<int64_t>(sizeof(float));
  if (output_.size() < bytes) {
    output_ = Buffer(bytes);
    spoil_output();
  }
  weights_ = std::move(weights);
  next_chunk_.store(n_threads_, std::memory_order_relaxed);  // the first of each thread is its own number
}

void Matmul::run(int thread) {
  const int64_t first = batch_ * thread / n_threads_;
  const int64_t last = batch_ * (thread + 1) / n_threads_;
  for (int64_t row = first; row < last; ++row) activations_.quantise(row, input() + row * n_columns_);
  if (n_threads_ > 1) barrier_.wait();
  const int64_t row_chunks = parts_of(n_rows_, chunk_rows_);
  const int64_t batch_chunks = parts_of(batch_, chunk_batch_);
  const int64_t all_chunks = row_chunks * batch_chunks * static_cast<int64_t>(weights_.size());
  if (has_own_chunks_ && thread >= row_chunks) return;
  const int64_t stride = weight_bytes_ / n_rows_;
  const auto next_of = [&](int64_t chunk) {
    return has_own_chunks_ ? chunk + row_chunks : next_chunk_.fetch_add(1, std::memory_order_relaxed);
  };
  for (int64_t chunk = thread; chunk < all_chunks; chunk = next_of(chunk)) {
    const int64_t row = chunk % row_chunks * chunk_rows_;
    const int64_t first = chunk / row_chunks % batch_chunks * chunk_batch_;
    const int64_t matrix = chunk / row_chunks / batch_chunks;
    multiply(weights_[static_cast<std::size_t>(matrix)] + row * stride, std::min(chunk_rows_, n_rows_ - row), first,
             std::min(first + chunk_batch_, batch_), output_.as<float>() + matrix * batch_ * n_rows_ + row,
             scratch_.data() + thread * kScratchBytes);
  }
}

void Matmul::multiply(const uint8_t* weights, int64_t n_rows, int64_t first, int64_t last, float* out, uint8_t* scratch) const {
  const int64_t stride = weight_bytes_ / n_rows_;
  for (int64_t j = first; j < last; j += at_once_) {
    for (int64_t row = 0; row < n_rows; row += kRowsPerCall) {
      multiply_(weights + row * stride, std::min(kRowsPerCall, n_rows - row), activations_, j, std::min(j + at_once_, last), out + row,
                n_rows_, scratch);
    }
  }
}

void Matmul::spoil_output() {
  std::fill_n(output_.as<float>(), output_.size() / static_cast<int64_t>(sizeof(float)), std::numeric_limits<float>::quiet_NaN());
}

std::string Matmul::fault(const uint8_t* plain) const {
  Random random(1);
  std::vector<double> row(static_cast<std::size_t>(n_columns_));
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random.next() % static_cast<uint64_t>(n)); };
  for (int sample = 0; sample < kSamples; ++sample) {
    const int64_t matrix = below(static_cast<int64_t>(weights_.size()));
    const int64_t j = below(batch_);
    const int64_t i = below(n_rows_);
    dequantise_row(type_, plain + i * (weight_bytes_ / n_rows_), n_columns_, row.data());
    double sum = 0.0;
    double magnitude = 0.0;
    for (int64_t c = 0; c < n_columns_; ++c) {
      const double product = row[static_cast<std::size_t>(c)] * activations_.value(j, c);
      sum += product;
      magnitude += std::abs(product);
    }
    const double got = output()[(matrix * batch_ + j) * n_rows_ + i];
    if (!(std::abs(got - sum) <= kTolerance * magnitude)) {
      return "row " + std::to_string(i) + " of the weights times row " + std::to_string(j) + " of the activations gave " +
             std::to_string(got) + ", should be " + std::to_string(sum);
    }
  }
  return "";
}

}  // namespace pshard
