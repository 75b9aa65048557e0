// Writes down a block of a language model: GraphWriter's words, and those that take the model's tensors by name. The forward_*.cpp files
// describe layers in these words.
#pragma once

#include <array>
#include <initializer_list>
#include <string_view>

#include "model/graph_writer.hpp"

namespace pshard {

class Graph : public GraphWriter {
 public:
  // Names are looked up in `tensors`; `layer` is null outside the layers. All must outlive the block.
  Graph(const Model& model, const Pass& pass, const std::vector<Tensor>& tensors, const Layer* layer = nullptr)
      : model_(model), pass_(pass), tensors_(tensors), layer_(layer) {
    if (pass.pshard_runtime) fuses_nothing();
    if (traits().fuses_attention) return;
    pass_.flash_attn = false;
    pass_.plain_v = false;
  }

  [[nodiscard]] const Model& model() const { return model_; }
  [[nodiscard]] const Hyperparameters& hyperparameters() const { return model_.hyperparameters(); }
  [[nodiscard]] const GraphTraits& traits() const { return model_.hyperparameters().traits; }
  [[nodiscard]] const LayerParameters& parameters() const { return layer_->parameters; }
  [[nodiscard]] const Pass& pass() const { return pass_; }
  [[nodiscard]] int64_t n_tokens() const { return pass_.n_tokens; }
  [[nodiscard]] int64_t n_seq_tokens() const { return pass_.n_tokens / pass_.n_seqs; }

  // Tensor "NAME.weight", else "NAME"; null where the layer has neither.
  [[nodiscard]] const Tensor* find(std::string_view name) const;
  [[nodiscard]] const Tensor* find_bias(std::string_view name) const;
  // Same, throwing std::invalid_argument where it is missing.
  [[nodiscard]] const Tensor& require(std::string_view name) const;
  // The same of what is loaded with the head.
  [[nodiscard]] const Tensor& require_of_head(std::string_view name) const;
  // Of the first layer; null where it lacks it.
  [[nodiscard]] const Tensor* find_in_first_layer(std::string_view name) const;

  Node positions();
  Node state_rows();
  Node other_state_rows() { return input(GraphInput::other_state_rows, Layout::packed({0, 1, 1, 1}, kI32)); }

  // Products with a weight, and with the adapters that it has (LoRA): a pair of smaller matrices each, whose product is added.
  using GraphWriter::mul_mat;
  Node mul_mat(const Tensor& weight, Node x);
  Node mul_mat_id(const Tensor& weight, Node x, Node ids);
  Node look_up(const Tensor& table, Node ids);  // rows of it

  // mul_mat with the bias of the same name where there is one.
  Node project(std::string_view name, Node x);
  Node rope(Node x);  // by position, with the model's frequency factors
  Node norm(Node x);  // the model's kind of norm; mean and variance go into memory of their own

  // Norm with its weight and bias. Without such a tensor nothing happens.
  Node norm(std::string_view name, Node x);
  // The same in another group than the tensor's name says.
  Node norm(std::string_view name, Node x, Group group);

  // Into the cache or state of the layer: `cache_bytes` written.
  void store(std::initializer_list<int32_t> operands, int64_t cache_bytes, Step step = Step::other);
  Node output_rows(Node x);  // keeps the rows whose logits are wanted
  // The cells that an indexer has chosen: this layer's, or one's before it.
  void select_cells(Node cells) { selected_cells_ = cells; }
  [[nodiscard]] Node selected_cells() const { return selected_cells_; }

 private:
  [[nodiscard]] const Tensor* search(const std::vector<Tensor>& tensors, std::string_view name, std::string_view suffix) const;
  [[nodiscard]] const Tensor& found(const Tensor* tensor, std::string_view name) const;
  template <typename Product>
  Node adapted(const Tensor& weight, Node out, Node x, Product product);

  const Model& model_;
  Pass pass_;
  const std::vector<Tensor>& tensors_;
  const Layer* layer_;
  Node selected_cells_ = kNoValue;
};

// What of the cache one operation reads.
[[nodiscard]] CacheOperand cache_operand(const Layout& view);

// The parts of a layer; each takes and returns nodes.
Node build_attention(Graph& g, Node normed);  // output projection included
// The attention alone, and what it writes into the cache; `value` may be kNoValue.
Node attend_to_heads(Graph& g, Node query, Node key, Node value);
// A layer that no description fits.
Node build_guessed_layer(Graph& g, const Layer& layer, Node residual, bool drop_rows);
Node build_cross_attention(Graph& g, Node normed);  // to what an encoder has made
// Of a layer with an indexer: [chosen cells, tokens, 1, streams]; its keys have a cache of their own.
Node choose_cells(Graph& g, Node normed, Node query_input);
// `mask` without the cells that were not selected.
Node only_cells(Graph& g, Node mask, Node selected);
Node build_mixer(Graph& g, Node normed, Node state);
// Adds the layer's part of the token embeddings, which `embeddings` holds: [width, tokens, layers], or in the layer that makes them of what
// was looked up (and of its `input`) [width, layers, tokens].
struct WithEmbedding {
  Node output = kNoValue;
  Node embeddings = kNoValue;  // as the layers behind read them
};
WithEmbedding add_layer_embedding(Graph& g, Node output, Node embeddings, Node input);
// The same before it is added: the part, gated by `gate_input`.
WithEmbedding layer_embedding(Graph& g, Node gate_input, Node embeddings, Node input);
// Several hidden states side by side, [n_embd, tokens, states], of which a layer computes one and corrects all by it (Gemma 3n). The first
// layer makes them of its input.
WithEmbedding build_layer_of_states(Graph& g, Node residual, Node embeddings);
Node join_states(Graph& g, Node states);                        // behind the last layer
Node build_ffn(Graph& g, Node normed, Node logits = kNoValue);  // dense, or experts and shared experts; `logits` of a router that has run
Node build_dense_and_experts(Graph& g, Node x);                 // side by side, each with norms of its own (Gemma 4)

// What a mixer starts from, as far as it is read early: of token shifts all, of others what a convolution keeps.
struct MixerStates {
  Node kept = kNoValue;
  Node recurrence = kNoValue;
};
// A whole layer that mixes every token with the one before. `first_value`: see LayerParameters.
Node build_shifting_layer(Graph& g, Node residual, bool drop_rows, const MixerStates& states, Node& first_value);
// Routed experts that read the layer's input, beside a dense FFN (Arctic).
Node build_experts_of_input(Graph& g, Node input);

// The rows of a state that the batch's sequences use: [elements, sequences].
Node load_state(Graph& g, int64_t elements);

}  // namespace pshard
