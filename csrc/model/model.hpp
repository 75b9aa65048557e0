// A model as its GGUF header describes it. Python reads the file; this is the one description that memory, cost and plan share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/tensor.hpp"

namespace pshard {

enum class Mixer : uint8_t { attention, mamba, mamba2, gated_delta, short_convolution, none };
enum class Gating : uint8_t { softmax, sigmoid, softmax_of_selected };

// What a layer needs to be known for besides its tensors. Dimensions are elements, not bytes.
struct LayerParameters {
  Mixer mixer = Mixer::attention;
  int64_t n_head = 0;
  int64_t n_head_kv = 0;
  int64_t head_dim_k = 0;  // per head, as the KV cache stores it (MLA: kv_lora_rank + rope dimensions, one head)
  int64_t head_dim_v = 0;  // 0 where the cache holds no V (MLA)
  int64_t window = 0;      // sliding window or chunk in tokens; 0 attends to the whole context
  int64_t conv_state = 0;  // recurrent state, elements per sequence: convolution part
  int64_t scan_state = 0;  // and scan part
  bool uses_rope = true;

  bool operator==(const LayerParameters&) const = default;
};

// Bytes that one token adds to the layer's KV cache; 0 for a layer without attention.
[[nodiscard]] int64_t kv_bytes_per_cell(const LayerParameters& layer, const DataType& type_k, const DataType& type_v);
// Recurrent state of one sequence, always f32.
[[nodiscard]] int64_t state_bytes(const LayerParameters& layer);

// Where rows whose logits are not wanted are dropped, if not inside the last layer: before or behind the final norm. What is there before
// they are dropped stays to the end of the pass, since llama.cpp hands it out.
enum class LateRows : uint8_t { no, before_norm, behind_norm };

// How a layer's attention, its FFN and the residual are summed: one behind the other, or side by side, in the order of the additions.
enum class Sum : uint8_t { sequential, ffn_residual_attention, ffn_attention_residual, attention_ffn_residual };

// Which queries are scaled by position: none, those without rope, all.
enum class Temperature : uint8_t { none, unrotated, all };

// How one architecture wires the same parts. Everything that tensor names already tell (biases, QK norms, post norms, shared experts,
// fused QKV, gated or plain FFN) is read from the tensors and is not repeated here.
struct GraphTraits {
  bool causal = true;  // false: encoder, no KV cache
  bool scaled_embedding = false;
  bool scaled_residual = false;
  bool scaled_head_input = false;
  bool scaled_logits = false;
  double logits_softcap = 0.0;      // 0: none
  int64_t positions_per_token = 1;  // 4 where positions have sections for text and images
  bool layer_norm = false;          // mean and variance, which ggml does not compute in place; else RMS
  Sum sum = Sum::sequential;
  // Which operand of the two sums of a sequential layer is the residual: the first is written over if it can be.
  bool residual_first_in_attention = false;
  bool residual_first = false;
  LateRows late_rows = LateRows::no;
  // attention
  bool gated_attention = false;  // the query projection carries an output gate
  bool joined_heads = false;     // fused projections are taken apart before they are heads
  bool clamped_qkv = false;
  bool norm_behind_rope = false;     // of queries and keys
  bool norm_without_weight = false;  // query and key are normed without a weight tensor in layers with rope (llama4)
  Temperature temperature = Temperature::none;
  double attention_softcap = 0.0;
  // FFN
  bool ffn_reads_attention_norm = false;  // where it has no norm of its own
  bool squared_activation = false;
  Gating gating = Gating::softmax;
  int64_t n_expert_groups = 1;  // experts are chosen in the best n_expert_groups_used of so many groups
  int64_t n_expert_groups_used = 1;
  bool normalised_expert_weights = false;
  bool scaled_expert_weights = false;
  bool weight_before_ffn = false;     // expert weights multiply the expert's input (llama4)
  bool shared_gate_by_ratio = false;  // the gate of shared experts is silu(x) / x, not sigmoid(x) (qwen2moe)
  // recurrent mixers
  bool norms_time_step = false;    // Mamba: time steps and projections are normed, without weights where the file has none
  bool repeats_key_heads = false;  // gated delta: keys and queries are repeated to the number of value heads
};

struct Hyperparameters {
  std::string architecture;
  int32_t n_layer = 0;        // layers that a forward pass computes
  int32_t n_layer_nextn = 0;  // next-token-prediction layers stored behind them; llama.cpp counts them and does not load them
  int64_t n_embd = 0;
  int64_t n_vocab = 0;
  int64_t n_ctx_train = 0;
  int64_t n_expert = 0;
  int64_t n_expert_used = 0;
  // MLA; 0 elsewhere
  int64_t kv_lora_rank = 0;
  int64_t rope_dim = 0;
  int64_t head_dim_k_mla = 0;
  int64_t head_dim_v_mla = 0;
  // recurrent mixers; 0 elsewhere
  int64_t ssm_conv_kernel = 0;
  int64_t ssm_inner_size = 0;
  int64_t ssm_state_size = 0;
  int64_t ssm_group_count = 0;
  int64_t ssm_time_step_rank = 0;
  GraphTraits traits;
  std::vector<LayerParameters> layers;  // n_layer + n_layer_nextn entries
};

struct Layer {
  LayerParameters parameters;
  std::vector<Tensor> tensors;
  // Layers with the same parameters and the same tensor names, shapes and types share a class; costs are computed once per class.
  int32_t layer_class = 0;
};

class Model {
 public:
  // Throws std::invalid_argument where the parts contradict each other (a layer without tensors, a parameter count that differs).
  Model(Hyperparameters hyperparameters, std::vector<Tensor> tensors);

  [[nodiscard]] const Hyperparameters& hyperparameters() const { return hyperparameters_; }
  // The n_layer computed layers; next-token-prediction layers are left out.
  [[nodiscard]] const std::vector<Layer>& layers() const { return layers_; }
  // Tensors outside the layers, by group. embedding() also holds what belongs to neither: rope_freqs and rope_factors_* (llama.cpp keeps
  // one copy per device that holds layers) and an encoder's token_embd_norm (it goes with layer 0).
  [[nodiscard]] const std::vector<Tensor>& embedding() const { return embedding_; }
  [[nodiscard]] const std::vector<Tensor>& head() const { return head_; }
  // No separate output.weight: the head computes with a second copy of token_embd.weight (it is in head() too).
  [[nodiscard]] bool tied_head() const { return tied_head_; }
  [[nodiscard]] int32_t n_layer_classes() const { return n_layer_classes_; }

 private:
  Hyperparameters hyperparameters_;
  std::vector<Layer> layers_;
  std::vector<Tensor> embedding_;
  std::vector<Tensor> head_;
  bool tied_head_ = false;
  int32_t n_layer_classes_ = 0;
};

}  // namespace pshard
