// A model as its GGUF header describes it. Python reads the file; this is the one description that memory, cost and plan share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/tensor.hpp"
#include "model/traits.hpp"

namespace pshard {

// `mamba_heads` scans like Mamba-2 what it projects like Mamba (PLaMo 2); `channel_delta` is a gated delta rule with a decay of its own for
// every channel (Kimi); `token_shift` mixes with the token before (RWKV); `lightning` is attention without a softmax, whose keys and values
// decay (MiniMax-01).
enum class Mixer : uint8_t {
  attention,
  mamba,
  mamba2,
  mamba_heads,
  gated_delta,
  channel_delta,
  short_convolution,
  token_shift,
  lightning,
  none
};

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
  bool norms_before_state = false;  // the mixer's input is normed before its state is read
  bool gives_value = false;         // layers behind mix its values with theirs (RWKV 7)
  bool is_sparse = false;           // most activations of the FFN are cut off
  int64_t indexer_dim = 0;    // an indexer chooses the cells to attend to, by keys of so many elements in a cache of their own; 0: none
  bool is_selective = false;  // attends to chosen cells only, its own indexer's or those of a layer before
  int64_t indexer_dim_v = 0;  // values that such a cache keeps beside them
  int64_t compression = 0;    // one more cell of every cache for so many tokens, over the whole context; 0: none
  int32_t shared_cache = -1;  // the layer whose KV cache it reads instead of keeping one; -1: none

  bool operator==(const LayerParameters&) const = default;
};

// Bytes that one token adds to the layer's KV cache; 0 for a layer without attention, or that reads another's.
[[nodiscard]] int64_t kv_bytes_per_cell(const LayerParameters& layer, const DataType& type_k, const DataType& type_v);
// Recurrent state of one sequence, always f32.
[[nodiscard]] int64_t state_bytes(const LayerParameters& layer);

struct Hyperparameters {
  std::string architecture;
  int32_t n_layer = 0;        // layers that a forward pass computes
  int32_t n_layer_nextn = 0;  // next-token-prediction layers stored behind them; llama.cpp counts them and does not load them
  int64_t n_embd = 0;
  int64_t n_states = 1;     // hidden states side by side
  int64_t n_deepstack = 0;  // layers for which embeddings that are given bring a part of their own
  int64_t n_vocab = 0;
  int64_t n_ctx_train = 0;
  int64_t n_expert = 0;
  int64_t n_expert_used = 0;
  // MLA; 0 elsewhere
  int64_t kv_lora_rank = 0;
  int64_t rope_dim = 0;
  int64_t head_dim_k_mla = 0;
  int64_t head_dim_v_mla = 0;
  // indexers; 0 elsewhere
  int64_t indexer_n_head = 0;
  int64_t indexer_top_k = 0;
  // recurrent mixers; 0 elsewhere
  int64_t ssm_conv_kernel = 0;
  int64_t ssm_inner_size = 0;
  int64_t ssm_state_size = 0;
  int64_t ssm_group_count = 0;
  int64_t ssm_time_step_rank = 0;
  GraphTraits traits;
  std::vector<LayerParameters> layers;  // n_layer + n_layer_nextn entries
};

// Channels that CUDA's kernel of a convolution takes at a time.
inline constexpr int64_t kConvolvedAtOnce = 128;

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
  // Some of the tensors are adapters'.
  [[nodiscard]] bool is_adapted() const { return is_adapted_; }
  [[nodiscard]] int32_t n_layer_classes() const { return n_layer_classes_; }

 private:
  Hyperparameters hyperparameters_;
  std::vector<Layer> layers_;
  std::vector<Tensor> embedding_;
  std::vector<Tensor> head_;
  bool tied_head_ = false;
  bool is_adapted_ = false;
  int32_t n_layer_classes_ = 0;
};

}  // namespace pshard
