// Scans of recurrent layers over the tokens of one sequence, as llama.cpp computes them: token after token, heads dealt to the threads in
// equal parts. The state of a head is a matrix with one row for each of its outputs. A token first changes it, then it is read out:
//
// mamba      each element decays by an exponential of its own and takes on input times key: exp(step * rate), as it stands
// mamba2     the same with one decay for the head
// delta_net  one decay for the head; the row takes on the key times what its product with the key lacks to the value (gated delta rule)
//
// An output is the product of its row with the query.
#pragma once

#include <cstdint>
#include <string>

#include "probe/kernels.hpp"
#include "probe/memory.hpp"

namespace pshard {

enum class ScanKind : uint8_t { mamba, mamba2, delta_net };

struct ScanShape {
  ScanKind kind = ScanKind::mamba2;
  int64_t n_heads = 0;
  int64_t n_rows = 0;     // outputs of a head
  int64_t n_columns = 0;  // of the state, for each output
  int64_t batch = 1;      // tokens
};

class Scan {
 public:
  // Throws std::invalid_argument, naming the field, for a shape that is none.
  Scan(const Kernels& kernels, const ScanShape& shape, int n_threads);

  [[nodiscard]] int64_t state_bytes() const;
  // As the model counts them: decay, outer product, addition and read-out of each element.
  [[nodiscard]] double n_flop() const;

  void start(const float* state);  // of before, which is kept
  void run(int thread);

  // As those of Matmul.
  [[nodiscard]] std::string fault() const;
  void spoil_output();

 private:
  [[nodiscard]] int64_t head_bytes() const;
  // Mamba's heads share keys and queries.
  [[nodiscard]] int64_t n_key_heads() const { return shape_.kind == ScanKind::delta_net ? shape_.n_heads : 1; }
  [[nodiscard]] const float* key_of(const Buffer& keys, int64_t head, int64_t token) const;
  void scan_head(int64_t head, int64_t token, float* room);
  [[nodiscard]] double reference(int64_t head, int64_t row) const;

  const Kernels& kernels_;
  ScanShape shape_;
  int n_threads_;
  Buffer inputs_;  // F32: [batch][n_heads][n_rows]
  Buffer keys_;    // [batch][n_key_heads][n_columns], of length one
  Buffer queries_;
  Buffer steps_;   // [batch][n_heads], in [0.05, 1): of time, or the share that a delta rule writes
  Buffer rates_;   // negative, of the decay: [n_heads][n_columns]; but for mamba the first of each head counts
  Buffer after_;   // the state behind the last token
  Buffer output_;  // [batch][n_heads][n_rows]
  Buffer rooms_;   // of the threads: [n_rows]
  const float* before_ = nullptr;
};

}  // namespace pshard
