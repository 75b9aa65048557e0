#include "stream/host_product.hpp"

#include <algorithm>

namespace pshard {
namespace {

constexpr int64_t kChunksPerThread = 4;  // so that a thread that falls behind leaves its share to others
constexpr int64_t kWholeRows = 16;       // the largest group or panel

int64_t x_rows(const Product& product) {
  return product.routes == nullptr || product.has_own_rows ? product.m : product.m / product.routes->n_used;
}

}  // namespace

HostProduct::HostProduct(const Kernels& kernels, const Product& shape, int n_threads)
    : multiply_(kernels.multiply.of(shape.type)),
      n_threads_(n_threads),
      product_(shape),
      rounded_(shape.type, x_rows(shape), shape.k),
      by_expert_(shape.routes == nullptr ? nullptr : std::make_unique<Activations>(shape.type, shape.m, shape.k)),
      scratch_(n_threads * kScratchBytes),
      barrier_(n_threads) {}

void HostProduct::start(const Product& product) {
  product_ = product;
  parts_.clear();
  const int64_t bytes = product.n * row_bytes(product.type, product.k);
  if (product.routes == nullptr) {
    parts_.push_back({product.weights, 0, product.m});
  } else {
    const Routes& routes = *product.routes;
    for (size_t i = 0; i < routes.experts.size(); ++i) {
      parts_.push_back({product.weights + routes.experts[i] * bytes, routes.first[i], routes.first[i + 1]});
    }
  }
  const int64_t all = product.n * static_cast<int64_t>(parts_.size());
  const int64_t share = (all + n_threads_ * kChunksPerThread - 1) / (n_threads_ * kChunksPerThread);
  chunk_rows_ = std::min((share + kWholeRows - 1) / kWholeRows * kWholeRows, kRowsPerCall);
  next_chunk_.store(0, std::memory_order_relaxed);
}

void HostProduct::quantise(int thread) {
  const int64_t first = rounded_.n_rows * thread / n_threads_;
  const int64_t last = rounded_.n_rows * (thread + 1) / n_threads_;
  for (int64_t row = first; row < last; ++row) rounded_.quantise(row, product_.x + row * product_.k);
  if (n_threads_ > 1) barrier_.wait();
}

void HostProduct::gather(int thread) {
  const Routes& routes = *product_.routes;
  const int64_t first = product_.m * thread / n_threads_;
  const int64_t last = product_.m * (thread + 1) / n_threads_;
  for (int64_t i = first; i < last; ++i) {
    const int64_t row = routes.rows[static_cast<size_t>(i)];
    by_expert_->take_row(i, rounded_, product_.has_own_rows ? row : row / routes.n_used);
  }
  if (n_threads_ > 1) barrier_.wait();
}

void HostProduct::run(int thread) {
  quantise(thread);
  if (by_expert_ != nullptr) gather(thread);
  const Activations& x = by_expert_ != nullptr ? *by_expert_ : rounded_;
  const int64_t chunks = (product_.n + chunk_rows_ - 1) / chunk_rows_;
  const int64_t all_chunks = chunks * static_cast<int64_t>(parts_.size());
  const int64_t stride = row_bytes(product_.type, product_.k);
  for (int64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed); chunk < all_chunks;
       chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed)) {
    const Part& part = parts_[static_cast<size_t>(chunk / chunks)];
    const int64_t row = chunk % chunks * chunk_rows_;
    multiply_(part.weights + row * stride, std::min(chunk_rows_, product_.n - row), x, part.first, part.last, product_.y + row, product_.n,
              scratch_.data() + thread * kScratchBytes);
  }
}

}  // namespace pshard
