// What a forward pass is made of: operations, and the values between them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "model/op_kind.hpp"
#include "model/tensor.hpp"

namespace pshard {

// What the host fills in before the pass. One tensor each, shared by all layers; a device that reads it gets one copy.
enum class GraphInput : uint8_t {
  none,
  tokens,
  layer_tokens,  // the same once more, for embeddings that the layers read
  positions,
  state_rows,
  other_state_rows,  // of sequences that are not in the micro-batch
  key_cells,
  value_cells,
  mask,
  indexer_cells,
  indexer_mask,
  key_cells_window,
  value_cells_window,
  mask_window,
  encoded,  // what an encoder has made
  encoded_mask,
  distances,  // classes of distances between tokens and cells
  decay_slopes,
  decay_of_queries,
  decay_of_keys,
  decay_of_pairs,
  attention_scale,
  key_rotation,
  value_rotation,
  key_rotation_window,
  value_rotation_window,
  output_rows,
  rope_factors,  // a weight that all layers share; like an input it is copied once, where they lie in host memory
  given,         // what an encoder of images or sound is given has numbers instead of names, from here on
};
inline constexpr int kGivenInputCount = 30;
inline constexpr int kGraphInputCount = static_cast<int>(GraphInput::given) + kGivenInputCount;
using InputBits = uint64_t;  // one bit per GraphInput
static_assert(kGraphInputCount <= 64);
[[nodiscard]] constexpr InputBits input_bit(GraphInput input) { return InputBits{1} << static_cast<unsigned>(input); }

// Graph inputs in the order in which they are read first.
class InputList {
 public:
  void add(GraphInput input) {
    if ((bits_ & input_bit(input)) != 0) return;
    inputs_[n_++] = input;
    bits_ |= input_bit(input);
  }
  [[nodiscard]] const GraphInput* begin() const { return inputs_.data(); }
  [[nodiscard]] const GraphInput* end() const { return inputs_.data() + n_; }
  [[nodiscard]] InputBits bits() const { return bits_; }
  [[nodiscard]] int32_t size() const { return n_; }
  bool operator==(const InputList& other) const { return bits_ == other.bits_ && std::equal(begin(), end(), other.begin()); }

 private:
  std::array<GraphInput, kGraphInputCount> inputs_{};
  uint8_t n_ = 0;
  InputBits bits_ = 0;
};

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
  Group group = Group::norms;  // the group whose placement says where this runs
  const Tensor* weight = nullptr;
  int64_t weight_part_bytes = 0;  // where only this much of the weight is read; 0: all of it
  // False for rope factors and the sinks of fused attention: too small to decide where the operation runs, but copied where it does.
  bool weight_decides = true;
  Recurrence recurrence = Recurrence::none;
  bool is_first_layers = false;  // the weight is one of the first layer's, which all layers read
  // mul_mat and mul_mat_id: out[n, m] = weight[k, n] x in[k, m]; m counts (token, expert) rows for experts.
  int64_t n = 0, k = 0, m = 0;
  int64_t offload_rows = 0;  // what op-offload compares with its threshold: rows of the output, tokens for experts, 0 for look-ups
  double flop = 0.0;
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
  bool host_only = false;          // no GPU has a kernel for it
  bool is_for_next_layer = false;  // runs where the next layer's groups are

  [[nodiscard]] bool reads_cache() const { return cache[0].n_bytes + cache[1].n_bytes > 0; }
};

// Rope factors are too small to decide, or to stream; they are the same for all layers and are copied like an input.
[[nodiscard]] inline bool reads_rope_factors(const Operation& operation) {
  return operation.weight != nullptr && !operation.weight_decides && operation.weight_part_bytes == 0 &&
         operation.kind == OpKind::elementwise && operation.group != Group::embedding;
}

// A GPU fuses the operations `first` to `last` into one kernel, if no split comes between: `value` then lives until behind `until`.
struct FusedRun {
  int32_t first = 0;
  int32_t last = 0;
  int32_t until = 0;
  int32_t value = kNoValue;
};

}  // namespace pshard
