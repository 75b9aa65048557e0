// Products on the threads of a queue, from memory that the caller has: one matrix with all rows of activations, or the experts that are
// used, each with the rows that are routed to it. As in `Matmul`, each thread rounds its part of the activations, all wait for each other,
// then each takes the next chunk until none is left.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "probe/kernels.hpp"
#include "probe/threads.hpp"
#include "stream/backend.hpp"

namespace pshard {

class HostProduct {
 public:
  HostProduct(const Kernels& kernels, const Product& shape, int n_threads);

  void start(const Product& product);
  void run(int thread);

 private:
  struct Part {
    const uint8_t* weights;
    int64_t first, last;  // rows of y
  };
  void quantise(int thread);
  void gather(int thread);

  MultiplyRows multiply_;
  int n_threads_;
  int64_t chunk_rows_ = kRowsPerCall;
  Product product_;
  Activations rounded_;
  std::unique_ptr<Activations> by_expert_;  // the rounded rows in the order of y
  Buffer scratch_;
  Barrier barrier_;
  std::vector<Part> parts_;
  std::atomic<int64_t> next_chunk_{0};
};

}  // namespace pshard
