// What a forward pass is made of: operations, and the values between them.
#pragma once

#include <array>
#include <cstdint>

#include "model/graph_input.hpp"
#include "model/op_kind.hpp"
#include "model/tensor.hpp"

namespace pshard {

// An intermediate result (or graph input) of the pass.
struct Value {
  int64_t n_bytes = 0;
  bool is_input = false;                // filled from the host before the pass: masks, positions, embeddings of the tokens
  GraphInput input = GraphInput::none;  // which one
  bool is_kept = false;                 // to the end of the pass: handed out
  bool is_room = false;                 // memory that is there before the pass, where its reader is; released like others
  int64_t gpu_scratch_bytes = 0;        // what a GPU allocates behind it: flash attention's f16 copy of a quantised cache
  int64_t gpu_scratch_of_copies = 0;    // and more where the cache is copied there: values that are part of the keys are it no longer
  bool is_named = true;                 // llama.cpp names it; of other results the pshard runtime does not see where they are
};

inline constexpr int32_t kNoValue = -1;
// Operands that are no values of the block: the weight, and what the layer's cache or state holds (K and V apart).
inline constexpr int32_t kWeight = -2;
inline constexpr int32_t kCache = -3;
inline constexpr int32_t kCacheV = -4;
[[nodiscard]] constexpr bool is_value(int32_t operand) { return operand >= 0; }

// Bytes of a cache as one operation sees it, and what a GPU pads a quantised one with.
struct CacheOperand {
  int64_t n_bytes = 0;
  int64_t gpu_padding_bytes = 0;
};

struct Operation {
  OpKind kind = OpKind::elementwise;
  Step step = Step::other;
  Group group = Group::norms;  // the group whose placement says where this runs
  const Tensor* weight = nullptr;
  int64_t weight_part_bytes = 0;  // where only this much of the weight is read; 0: all of it
  // False for rope factors and the sinks of fused attention: too small to decide where the operation runs, but copied where it does.
  bool weight_decides = true;
  bool weight_is_viewed = false;  // a view does not say where its weight lies, so that any GPU takes the operation
  Recurrence recurrence = Recurrence::none;
  bool is_first_layers = false;  // the weight is one of the first layer's, which all layers read
  // mul_mat and mul_mat_id: out[n, m] = weight[k, n] x in[k, m]; m counts (token, expert) rows for experts.
  int64_t n = 0, k = 0, m = 0;
  int64_t offload_rows = 0;  // what op-offload compares with its threshold: rows of the output, tokens for experts, 0 for look-ups
  double flop = 0.0;
  int32_t key_type = 1;  // of the cache that a fused attention reads, as ggml numbers it: F16
  int32_t value_type = 1;
  double unmasked = 1.0;                // of an attention's flop, the share that is left where masked cells are skipped
  int64_t activation_bytes = 0;         // read and written besides weights and cache
  int64_t cache_bytes = 0;              // read from (or written to) the KV cache or recurrent state
  int64_t cache_value_bytes = 0;        // the part of it that is V, where one operation reads K and V
  std::array<CacheOperand, 2> cache{};  // what kCache and kCacheV take where they are copied to another device
  // In ggml's order; the first kNoValue ends them.
  std::array<int32_t, 8> inputs{kNoValue, kNoValue, kNoValue, kNoValue, kNoValue, kNoValue, kNoValue, kNoValue};
  int32_t output = kNoValue;
  uint8_t overwrites = 0;          // bit i: the output may take inputs[i]'s place if nobody reads that afterwards
  int8_t writes_into = -1;         // the operand whose memory the output is, written over
  bool is_view = false;            // output shares inputs[0]'s memory: no allocation, no work
  bool is_norm = false;            // of a layer, without its weight: llama.cpp may tie it to the layer's device
  bool joins_heads = false;        // of attention that is not fused, what llama.cpp ties to a cache on the host
  bool host_only = false;          // no GPU has a kernel for it
  bool is_for_next_layer = false;  // runs where the next layer's groups are

  [[nodiscard]] bool reads_cache() const { return cache[0].n_bytes + cache[1].n_bytes > 0; }
};

// Over a cache in F16 or F32 llama.cpp's fused attention on a CPU takes many queries at once, and deals the cells of a single one to the
// threads. Over a quantised one, or one of two types, each query goes by itself.
[[nodiscard]] constexpr bool attends_together(int32_t key_type, int32_t value_type) {
  constexpr int32_t kF32Id = 0, kF16Id = 1;
  return key_type == value_type && (key_type == kF32Id || key_type == kF16Id);
}

// Rope factors are too small to decide, or to stream; they are the same for all layers and are copied like an input.
[[nodiscard]] inline bool reads_rope_factors(const Operation& operation) {
  return operation.weight != nullptr && !operation.weight_decides && operation.weight_part_bytes == 0 &&
         operation.kind == OpKind::elementwise && operation.group != Group::embedding;
}

// Operations that are one kernel on a GPU, if no split comes between.
struct KernelRun {
  int32_t first = 0;
  int32_t last = 0;
};

// A GPU fuses the operations `first` to `last` into one kernel, if no split comes between: `value` then lives until behind `until`.
struct FusedRun {
  int32_t first = 0;
  int32_t last = 0;
  int32_t until = 0;
  int32_t value = kNoValue;
};

}  // namespace pshard
