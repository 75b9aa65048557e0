// A product of weights with a batch of activations, shared among threads as llama.cpp shares it: each rounds its part of the activations,
// all wait for each other, then each takes the next chunk of rows until none is left.
//
// Routed experts go another way: for them llama.cpp has neither tiles (F16, Q8_0, Q4_0) nor interleaved panels, and multiplies each row of
// activations by itself. Plain weights go in chunks of 16 rows by 16 of activations; of interleaved ones each thread has a share of its
// own, which it reads again for every row of activations.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "probe/kernels.hpp"
#include "probe/threads.hpp"

namespace pshard {

enum class Routing : uint8_t { dense, experts };

class Matmul {
 public:
  // Throws std::invalid_argument for a shape or layout that no kernel multiplies.
  Matmul(const Kernels& kernels, WeightType type, Layout layout, int64_t n_rows, int64_t n_columns, int64_t batch, int n_threads,
         Routing routing = Routing::dense);

  [[nodiscard]] int64_t weight_bytes() const { return weight_bytes_; }
  [[nodiscard]] double n_flop() const { return 2.0 * static_cast<double>(n_rows_ * n_columns_ * batch_); }

  // Before threads run(): the matrices to multiply, each of weight_bytes(), all with the same activations.
  void start(std::vector<const uint8_t*> weights);
  void run(int thread);

  [[nodiscard]] float* input() const { return input_.as<float>(); }          // [batch][n_columns]
  [[nodiscard]] const float* output() const { return output_.as<float>(); }  // [matrix][batch][n_rows]

  // What is wrong with sampled outputs, against `plain` rows in double precision; "" when nothing is.
  [[nodiscard]] std::string fault(const uint8_t* plain) const;
  // Outputs that no product gives, so that a product that does nothing is found.
  void spoil_output();

 private:
  void multiply(const uint8_t* weights, int64_t n_rows, int64_t first, int64_t last, float* out, uint8_t* scratch) const;

  WeightType type_;
  MultiplyRows multiply_;
  int64_t n_rows_, n_columns_, batch_;
  int n_threads_;
  int64_t weight_bytes_;
  int64_t at_once_;      // rows of activations of one call
  int64_t chunk_rows_;   // of weights
  int64_t chunk_batch_;  // of activations
  bool has_own_chunks_;  // each thread the same rows of every matrix
  Buffer input_;
  Buffer output_;
  Buffer scratch_;
  Activations activations_;
  Barrier barrier_;
  std::vector<const uint8_t*> weights_;
  std::atomic<int64_t> next_chunk_{0};
};

}  // namespace pshard
