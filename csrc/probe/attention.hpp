// Fused attention over an F16 cache, shared among threads as llama.cpp does: many query tokens in tiles of one head, the cache in blocks,
// with a running maximum; fewer one by one; and of a single one each thread takes a part of the cells. Every query token reads every cell.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "probe/kernels.hpp"
#include "probe/threads.hpp"

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
  [[nodiscard]] bool is_tiled() const;
  void attend_tile(int64_t head, int64_t first, int64_t n, uint8_t* scratch);
  void attend_cells(int64_t head, int64_t token, int64_t first, int64_t n, int64_t slot);
  void attend_part(int thread);
  void join(int64_t head, int64_t token, int64_t slot, int64_t n_slots, int64_t stride);

  const Kernels& kernels_;
  AttentionShape shape_;
  int n_threads_;
  bool splits_cells_;  // among the threads
  int64_t scratch_bytes_;
  Buffer queries_;  // F16, scaled: [n_heads][batch][head_size]
  Buffer mask_;     // F16, of one token: no cell is masked
  Buffer output_;   // [n_heads][batch][head_size]
  Buffer scratch_;
  Buffer sums_;                  // F16, of a query over some cells: [slot][head_size]
  std::vector<Softmax> shares_;  // of the slots
  Barrier barrier_;
  const uint16_t* cache_ = nullptr;
  std::atomic<int64_t> next_{0};
};

}  // namespace pshard
