// One forward pass at a batch of tokens as a list of operations with shapes, FLOP and bytes. Memory and time both read this list;
// nothing else describes a model's computation.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/model.hpp"

namespace pshard {

// What the pass is sized for. Memory reserves for the worst case (all cells, logits for every token); time uses the cells in use and the
// rows that are wanted.
struct Pass {
  int64_t n_tokens = 1;        // tokens of the micro-batch
  int64_t n_outputs = 1;       // rows of logits
  int64_t n_seqs = 1;          // sequences in the micro-batch (streams of the KV cache)
  int64_t n_kv = 256;          // cells that an attention over the whole context reads, per stream
  int64_t n_kv_window = 256;   // cells that a sliding-window attention reads, per stream
  bool flash_attn = true;
  DataType type_k{1, 1, 2};
  DataType type_v{1, 1, 2};
};

enum class OpKind : uint8_t {
  mul_mat,      // weight x activation
  mul_mat_id,   // routed experts
  attention,    // fused attention over the cache
  attention_kq, // unfused: K x Q, and the weights x V
  get_rows,
  elementwise,  // norms, activations, additions, rope, soft-max, routing arithmetic
  copy,         // into the cache, or to make contiguous
  scan,         // recurrent scan or convolution
};

// An intermediate result (or graph input) of the pass.
struct Value {
  int64_t n_bytes = 0;
  bool is_input = false;  // filled from the host before the pass: masks, positions, embeddings of the tokens
};

inline constexpr int32_t kNoValue = -1;

struct Operation {
  OpKind kind = OpKind::elementwise;
  Group group = Group::norms;  // the group whose placement says where this runs
  const Tensor* weight = nullptr;
  // mul_mat and mul_mat_id: out[n, m] = weight[k, n] x in[k, m]; m counts (token, expert) rows for experts.
  int64_t n = 0, k = 0, m = 0;
  double flop = 0.0;
  int64_t activation_bytes = 0;  // read and written besides weights and cache
  int64_t cache_bytes = 0;       // read from (or written to) the KV cache or recurrent state
  std::array<int32_t, 5> inputs{kNoValue, kNoValue, kNoValue, kNoValue, kNoValue};
  int32_t output = kNoValue;
  bool in_place = false;         // may overwrite inputs[0] where nobody else reads it
  bool is_view = false;          // output shares inputs[0]'s memory: no allocation, no work
};

// A run of operations with values of its own numbering. inputs of the block: `residual_in` (kNoValue in the first block) and the graph
// inputs among its values.
struct Block {
  std::vector<Operation> operations;
  std::vector<Value> values;
  int32_t residual_in = kNoValue;
  int32_t residual_out = kNoValue;
};

// Embedding look-up (runs on the host) and what precedes layer 0.
[[nodiscard]] Block embedding_block(const Model& model, const Pass& pass);
// One layer. `is_last`: rows that are not wanted are dropped before its FFN, as llama.cpp does.
[[nodiscard]] Block layer_block(const Model& model, const Layer& layer, const Pass& pass, bool is_last);
// Final norm and output projection.
[[nodiscard]] Block head_block(const Model& model, const Pass& pass);

}  // namespace pshard
