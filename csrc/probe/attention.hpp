// Fused attention over a cache, shared among threads as llama.cpp does. Over one in F16: many query tokens in tiles of one head, the cache
// in blocks, with a running maximum; fewer one by one; and of a single one each thread takes a part of the cells. Over a quantised one, or
// one of two types, each query goes by itself, however many there are. Every query token reads every cell.
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
  WeightType key_type = WeightType::f16;
  WeightType value_type = WeightType::f16;
};

class Attention {
 public:
  // Throws std::invalid_argument, naming the field, for a shape that is none and for types that no kernel reads.
  Attention(const Kernels& kernels, const AttentionShape& shape, int n_threads);

  [[nodiscard]] int64_t cache_bytes() const;  // keys, then values: [depth][n_kv_heads][head_size] each, as their type stores a row
  [[nodiscard]] double n_flop() const;

  void start(const uint8_t* cache);
  void run(int thread);

  // As those of Matmul.
  [[nodiscard]] std::string fault() const;
  void spoil_output();

 private:
  [[nodiscard]] bool is_half() const;  // keys and values
  [[nodiscard]] bool is_tiled() const;
  [[nodiscard]] const uint8_t* key(int64_t cell, int64_t head) const;
  [[nodiscard]] const uint8_t* value(int64_t cell, int64_t head) const;
  struct Part {  // of the cells, for one query
    int64_t head, token, first, n;
  };
  void attend_tile(int64_t head, int64_t first, int64_t n, uint8_t* scratch);
  void attend_cells(int thread, const Part& part, int64_t slot);
  void attend_part(int thread);
  void join(int64_t head, int64_t token, int64_t slot, int64_t n_slots, int64_t stride);

  const Kernels& kernels_;
  AttentionShape shape_;
  int n_threads_;
  int64_t key_bytes_;  // of one head and cell
  int64_t value_bytes_;
  bool splits_cells_;  // among the threads
  int64_t scratch_bytes_;
  Activations queries_;  // rounded as the keys' type asks: row head * batch + token
  float query_scale_;    // where tiles take many queries; of others each score is scaled
  float score_scale_;
  Buffer mask_;    // F16, of one token: no cell is masked
  Buffer output_;  // [n_heads][batch][head_size]
  Buffer scratch_;
  Buffer sums_;                  // of a query over some cells, in F16 or F32 as the values are: [slot][head_size]
  std::vector<Softmax> shares_;  // of the slots
  Barrier barrier_;
  const uint8_t* cache_ = nullptr;
  std::atomic<int64_t> next_{0};
};

}  // namespace pshard
