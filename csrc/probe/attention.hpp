// Fused attention over an F16 cache, shared among threads: one head and a few query tokens at a time, the cache in blocks, with a running
// maximum. Every query token reads every cell.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "probe/kernels.hpp"

namespace pshard {

struct AttentionShape {
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t head_size = 0;
  int64_t depth = 0;  // cells that are read
  int64_t batch = 1;  // query tokens
};

class Attention {
 public:
  // Throws std::invalid_argument, naming the field, for a shape that is none.
  Attention(const Kernels& kernels, const AttentionShape& shape, int n_threads);

  [[nodiscard]] int64_t cache_bytes() const;  // keys, then values: [depth][n_kv_heads][head_size] each
  [[nodiscard]] double n_flop() const;

  void start(const uint16_t* cache);
  void run(int thread);

  // As those of Matmul.
  [[nodiscard]] std::string fault() const;
  void spoil_output();

 private:
  void attend(int64_t head, int64_t first, int64_t n, uint8_t* scratch);
  void attend_one(int64_t head, int64_t token, uint8_t* scratch);

  const Kernels& kernels_;
  AttentionShape shape_;
  int n_threads_;
  int64_t scratch_bytes_;
  Buffer queries_;  // F16, scaled: [n_heads][batch][head_size]
  Buffer output_;   // [n_heads][batch][head_size]
  Buffer scratch_;
  const uint16_t* cache_ = nullptr;
  std::atomic<int64_t> next_{0};
};

}  // namespace pshard
