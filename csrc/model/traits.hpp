// How architectures differ in what they make of the same parts.
#pragma once

#include <cstdint>

namespace pshard {

// How experts are chosen and weighed: by softmax or sigmoid of the logits; chosen by logits and weighed by softmax of those; or chosen by
// sigmoid and weighed by softmax.
enum class Gating : uint8_t { softmax, sigmoid, softmax_of_selected, softmax_chosen_by_sigmoid };

// Where rows whose logits are not wanted are dropped, if not inside the last layer: before or behind the final norm. What is there before
// they are dropped stays to the end of the pass, since llama.cpp hands it out; not so `behind_layers`, which is before the norm as well.
// `never`: logits are computed of all rows.
enum class LateRows : uint8_t { no, behind_layers, before_norm, behind_norm, never };

// How a layer's attention, its FFN and the residual are summed: one behind the other, or side by side, in the order of the additions.
enum class Sum : uint8_t { sequential, ffn_residual_attention, ffn_attention_residual, attention_ffn_residual };

// Which queries are scaled by position: none, those without rope, all.
enum class Temperature : uint8_t { none, unrotated, all };

// How one architecture wires the same parts. Everything that tensor names already tell (biases, QK norms, post norms, shared experts,
// fused QKV, gated or plain FFN) is read from the tensors and is not repeated here.
struct GraphTraits {
  bool causal = true;               // false: encoder, which attends to what follows
  bool is_guessed = false;          // its layers are not described: they are estimated from their tensors
  int64_t n_side_by_side = 1;       // of which hidden states are so many (hyper-connections)
  bool caches_by_sequence = false;  // whether the cache is said to be unified or not
  bool has_encoder = false;         // a decoder that also attends to what an encoder has made of another text (T5)
  bool keeps_cache = true;          // KV, used or not
  bool predicts = true;             // false: encoder, no logits
  bool loads_head = true;           // false: nor weights for them
  bool reads_embedding = false;     // the head multiplies by the embedding itself, which is in host memory (BitNet)
  bool repeats_tied_head = false;   // llama.cpp loads the embedding once more as the head, even where both lie in one memory
  bool scaled_embedding = false;
  bool normed_embedding = false;  // without a tensor
  bool scaled_residual = false;
  bool scales_normed_input = false;  // results are added to their own normed input, scaled, instead of to the residual
  bool scaled_head_input = false;
  bool scaled_logits = false;
  double logits_softcap = 0.0;      // 0: none
  int64_t positions_per_token = 1;  // 4 where positions have sections for text and images
  bool layer_norm = false;          // mean and variance, which ggml does not compute in place; else RMS
  bool unweighted_norms = false;    // without a tensor, before attention, FFN and output (OLMo)
  Sum sum = Sum::sequential;
  // Which operand of the two sums of a sequential layer is the residual: the first is written over if it can be.
  bool residual_first_in_attention = false;
  bool residual_first = false;
  LateRows late_rows = LateRows::no;
  bool norms_before_dropping_rows = false;  // in the last layer, behind the attention
  bool norms_results_alone = false;         // of attention and FFN, before they are added, also by norms that are elsewhere of the sums
  // attention
  bool fuses_attention = true;   // false: llama.cpp forces flash attention off (Grok)
  bool gated_attention = false;  // the query projection carries an output gate
  bool joined_heads = false;     // fused projections are taken apart before they are heads
  bool clamped_qkv = false;
  bool scaled_query = false;            // before the product with keys, instead of in it
  bool norm_behind_rope = false;        // of queries and keys
  bool norms_values = false;            // without a weight tensor; they are the keys where they have no projection (Gemma 4)
  bool full_layers_scale_rope = false;  // frequency factors are those of layers without a window
  bool windows_scale_rope = true;       // false: only layers without a window read them, though all have them (Step 3.5)
  bool norm_without_weight = false;     // query and key are normed without a weight tensor in layers with rope (llama4)
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
  bool routes_layer_input = false;    // experts are chosen by what the layer starts from, before its attention (SmallThinker)
  bool experts_down_on_host = false;  // the down projection asks for f32 activations, which CUDA's kernels do not take (Mistral 4)
  bool halves_experts = false;        // the sum of routed and shared experts is halved
  bool shared_gate_by_ratio = false;  // the gate of shared experts is silu(x) / x, not sigmoid(x) (qwen2moe)
  // adapters
  bool head_ignores_adapters = false;       // llama.cpp multiplies by the matrix itself
  bool attention_ignores_adapters = false;  // and by that behind the attention; latent projections always
  // recurrent mixers
  bool norms_time_step = false;    // Mamba: time steps and projections are normed, without weights where the file has none
  bool repeats_key_heads = false;  // gated delta: keys and queries are repeated to the number of value heads
};

}  // namespace pshard
