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
  int64_t n_tokens = 1;       // tokens of the micro-batch
  int64_t n_outputs = 1;      // rows of logits
  int64_t n_seqs = 1;         // sequences in the micro-batch
  int64_t n_streams = 1;      // streams of the KV cache that they use: n_seqs, or 1 where the cache is unified
  int64_t n_kv = 256;         // cells that an attention over the whole context reads, per stream
  int64_t n_kv_window = 256;  // cells that a sliding-window attention reads, per stream
  bool flash_attn = true;
  DataType type_k{1, 1, 2};
  DataType type_v{1, 1, 2};
};
// Throws std::invalid_argument, naming the field, unless tokens, outputs, sequences and streams are at least 1 and cells at least 0, and
// all below 2^31, as llama.cpp counts them.
void check(const Pass& pass);

enum class OpKind : uint8_t {
  mul_mat,       // weight x activation
  mul_mat_id,    // routed experts
  attention,     // fused attention over the cache
  attention_kq,  // unfused: K x Q, and the weights x V
  get_rows,
  elementwise,  // norms, activations, additions, rope, soft-max, routing arithmetic
  copy,         // into the cache, or to make contiguous
  scan,         // recurrent scan or convolution
};

// What the host fills in before the pass. One tensor each, shared by all layers; a device that reads it gets one copy.
enum class GraphInput : uint8_t {
  none,
  tokens,
  positions,
  state_rows,
  key_cells,
  value_cells,
  mask,
  key_cells_window,
  value_cells_window,
  mask_window,
  attention_scale,
  key_rotation,
  value_rotation,
  key_rotation_window,
  value_rotation_window,
  output_rows,
  rope_factors,  // a weight that all layers share; like an input it is copied once, where they lie in host memory
};
inline constexpr int kGraphInputCount = 17;

// An intermediate result (or graph input) of the pass.
struct Value {
  int64_t n_bytes = 0;
  bool is_input = false;                // filled from the host before the pass: masks, positions, embeddings of the tokens
  GraphInput input = GraphInput::none;  // which one
  int64_t gpu_scratch_bytes = 0;        // what a GPU allocates behind it: flash attention's f16 copy of a quantised cache
};

inline constexpr int32_t kNoValue = -1;

struct Operation {
  OpKind kind = OpKind::elementwise;
  Group group = Group::norms;  // the group whose placement says where this runs
  const Tensor* weight = nullptr;
  int64_t weight_part_bytes = 0;  // where only this much of the weight is read; 0: all of it
  // False for rope factors and the sinks of fused attention: too small to decide where the operation runs, but copied where it does.
  bool weight_decides = true;
  // mul_mat and mul_mat_id: out[n, m] = weight[k, n] x in[k, m]; m counts (token, expert) rows for experts.
  int64_t n = 0, k = 0, m = 0;
  int64_t offload_rows = 0;  // what op-offload compares with its threshold: rows of the output, tokens for experts, 0 for look-ups
  double flop = 0.0;
  int64_t activation_bytes = 0;   // read and written besides weights and cache
  int64_t cache_bytes = 0;        // read from (or written to) the KV cache or recurrent state
  int64_t cache_value_bytes = 0;  // the part of it that is V, where one operation reads K and V
  std::array<int32_t, 6> inputs{kNoValue, kNoValue, kNoValue, kNoValue, kNoValue, kNoValue};
  int32_t output = kNoValue;
  bool in_place = false;  // may overwrite an input of its output's size that nobody reads afterwards
  bool is_view = false;   // output shares inputs[0]'s memory: no allocation, no work
};

// A GPU fuses the operations `first` to `last` into one kernel, if no split comes between: `value` then lives until `last`.
struct FusedRun {
  int32_t first = 0;
  int32_t last = 0;
  int32_t value = kNoValue;
};

// A run of operations with values of its own numbering. inputs of the block: `residual_in` (kNoValue in the first block) and the graph
// inputs among its values.
struct Block {
  std::vector<Operation> operations;
  std::vector<Value> values;
  std::vector<FusedRun> fused;
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
