// The three kinds of block: embedding, layer, head. A layer's wiring is read from the tensors that it has; forward_attention.cpp,
// forward_ffn.cpp and forward_mixers.cpp hold its parts.
#include "model/forward.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "model/graph.hpp"

namespace pshard {

namespace {

void check_count(const char* field, int64_t value, int64_t least) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (value >= least && value <= kMost) return;
  throw std::invalid_argument("pass: " + std::string(field) + " is " + std::to_string(value) + "; it must be within " +
                              std::to_string(least) + " and " + std::to_string(kMost));
}

LateRows late_rows(const Graph& g) { return g.pass().pshard_runtime ? LateRows::no : g.traits().late_rows; }

Node scaled(Graph& g, Node x) { return g.traits().scaled_residual ? g.map(x) : x; }

// What a layer mixes tokens with: attention, a recurrent mixer, or both on the same input (Falcon-H1).
Node mix_tokens(Graph& g, Node residual, Node normed, Node state) {
  if (g.parameters().mixer == Mixer::attention) return build_attention(g, normed);
  if (g.parameters().n_head == 0) return build_mixer(g, normed, state);
  const Node attended = build_attention(g, normed);
  const Node mixed = build_mixer(g, g.norm("attn_norm", residual), state);
  g.in(Group::norms);
  return g.add(attended, mixed);
}

// Attention and FFN side by side on the layer's input.
Node parallel_layer(Graph& g, Node residual, bool drop_rows) {
  const Node normed = g.norm("attn_norm", residual);
  const bool has_second_norm = g.find("attn_norm_2") != nullptr;  // of the attention (Falcon 40B)
  Node attended = build_attention(g, has_second_norm ? g.norm("attn_norm_2", residual) : normed);
  const bool has_ffn_norm = g.find("ffn_norm") != nullptr;
  Node ffn_input = normed;
  if (drop_rows) {
    attended = g.output_rows(attended);
    residual = g.output_rows(residual);
    if (!has_ffn_norm) ffn_input = g.output_rows(normed);
  }
  if (has_ffn_norm) ffn_input = g.norm("ffn_norm", residual);
  const Node ffn = build_ffn(g, ffn_input);
  g.in(Group::norms);
  switch (g.traits().sum) {
    case Sum::ffn_residual_attention:
      return g.add(g.add(ffn, residual), attended);
    case Sum::ffn_attention_residual:
      return g.add(g.add(ffn, attended), residual);
    case Sum::attention_ffn_residual:
    case Sum::sequential:
      break;
  }
  return g.add(g.add(attended, ffn), residual);
}

// The norm before the FFN. A "post" norm that no FFN norm follows is the FFN's own (GLM, gpt-oss, Qwen3-Next); without a first norm
// both are true post norms.
std::string_view ffn_norm(const Graph& g, bool mixes) {
  if (g.find("ffn_norm") != nullptr || g.traits().unweighted_norms) return "ffn_norm";
  if (!mixes) return "attn_norm";
  if (g.find("attn_norm") == nullptr) return "";
  return g.find("post_attention_norm") != nullptr ? "post_attention_norm" : g.traits().causal ? "attn_output_norm" : "";
}

// [width of a part, layers, tokens] as they are looked up, [width of a part, tokens, layers] from the first layer on.
Layout layer_embeddings(const Graph& g, bool looked_up) {
  const int64_t width = g.require("inp_gate").shape[1];
  const int64_t n_layer = g.hyperparameters().n_layer;
  return looked_up ? Layout::packed({width, n_layer, g.n_tokens(), 1}) : Layout::packed({width, g.n_tokens(), n_layer, 1});
}

Node sequential_layer(Graph& g, Node residual, bool drop_rows, Node state) {
  const GraphTraits& traits = g.traits();
  const bool mixes = g.parameters().mixer != Mixer::none;
  const std::string_view norm = ffn_norm(g, mixes);
  const bool reads_first = traits.ffn_reads_attention_norm && g.find("ffn_norm") == nullptr;
  Node first = kNoValue;
  Node middle = residual;
  Node logits = kNoValue;
  if (traits.routes_layer_input && g.find("ffn_gate_inp") != nullptr) logits = g.project("ffn_gate_inp", residual);
  if (mixes) {
    first = g.norm("attn_norm", residual);
    Node current = mix_tokens(g, residual, first, state);
    if (g.find("cross_attn_q") != nullptr) {
      g.in(Group::norms);
      residual = g.add(current, residual);
      current = build_cross_attention(g, g.norm("cross_attn_norm", residual));
    }
    const bool norms_first = traits.norms_before_dropping_rows && norm != "post_attention_norm";
    if (norms_first) current = g.norm("post_attention_norm", current);
    const bool mixes_twice = g.parameters().mixer != Mixer::attention && g.parameters().n_head > 0;
    if (drop_rows && !mixes_twice) {
      current = g.output_rows(current);
      residual = g.output_rows(residual);
      if (reads_first) first = g.output_rows(first);
      if (logits != kNoValue) logits = g.output_rows(logits);
    }
    g.in(Group::norms);
    if (norm != "post_attention_norm" && !norms_first) current = g.norm("post_attention_norm", current);
    current = scaled(g, current);
    if (traits.norms_results_alone) current = g.norm("attn_output_norm", current);
    middle = traits.residual_first_in_attention ? g.add(residual, current) : g.add(current, residual);
    if (norm != "attn_output_norm" && !traits.norms_results_alone) middle = g.norm("attn_output_norm", middle);
    if (drop_rows && mixes_twice) middle = g.output_rows(middle);
    if (traits.residual_first) g.value(middle).is_named = false;
  } else if (drop_rows) {
    middle = g.output_rows(residual);
  }
  if (g.find("ffn_down") == nullptr && g.find("ffn_down_exps") == nullptr) return middle;
  const Node ffn = g.find("pre_ffw_norm_2") != nullptr ? build_dense_and_experts(g, middle)
                                                       : build_ffn(g, reads_first ? first : g.norm(norm, middle), logits);
  Node output = g.norm("post_ffw_norm", ffn);
  if (traits.norms_results_alone) output = g.norm("layer_output_norm", output);
  g.in(Group::norms);
  output = scaled(g, output);
  output = traits.residual_first ? g.add(middle, output) : g.add(output, middle);
  if (!traits.norms_results_alone) output = g.norm("layer_output_norm", output);
  return g.find("ffn_norm_exps") != nullptr ? g.add(build_experts_of_input(g, residual), output) : output;
}

// What attention and FFN read, normed and scaled, is what their results are added to.
Node layer_on_normed_inputs(Graph& g, Node residual, bool drop_rows, Node state) {
  Node first = g.norm("attn_norm", residual);
  Node current = mix_tokens(g, residual, first, state);
  if (drop_rows) {
    current = g.output_rows(current);
    first = g.output_rows(first);
  }
  g.in(Group::norms);
  const Node second = g.norm("ffn_norm", g.add(current, g.map(first)));
  const Node ffn = build_ffn(g, second);
  g.in(Group::norms);
  return g.add(ffn, g.map(second));
}

bool reads_scan_early(const Layer& layer) {
  return layer.parameters.mixer == Mixer::token_shift || layer.parameters.mixer == Mixer::lightning;
}

MixerStates given_states(Graph& g, const Layer& layer) {
  const auto given = [&](int64_t elements) { return g.given(Layout::packed({elements, g.pass().n_seqs, 1, 1})); };
  return {.kept = given(layer.parameters.conv_state),
          .recurrence = reads_scan_early(layer) ? given(layer.parameters.scan_state) : kNoValue};
}

MixerStates load_states(Graph& g, const Layer& layer) {
  const Node kept = load_state(g, layer.parameters.conv_state);
  return {.kept = kept, .recurrence = reads_scan_early(layer) ? load_state(g, layer.parameters.scan_state) : kNoValue};
}

// Reads the states of a layer behind before what is still to be computed of this one.
MixerStates load_next_states(Graph& g, const Layer& next) {
  const size_t first = g.n_listed();
  const MixerStates states = load_states(g, next);
  for (size_t i = first; i < g.n_listed(); ++i) g.block().operations[i].is_for_next_layer = true;
  return states;
}

// The cells that an indexer chooses for every token.
Layout selection(const Model& model, const Pass& pass) {
  const int64_t n = std::min(pass.n_kv, model.hyperparameters().indexer_top_k);
  return Layout::packed({n, pass.n_tokens / pass.n_streams, 1, pass.n_streams}, kI32);
}

// Rows of embeddings with a part for each of the first layers behind that of the tokens (deepstack).
Layout wide_rows(const Model& model, const Pass& pass) {
  const Hyperparameters& h = model.hyperparameters();
  return Layout::packed({h.n_embd * (1 + h.n_deepstack), pass.n_tokens, 1, 1});
}

Node part_of(Graph& g, Node wide) {
  const int64_t row = g.layout(wide).nb[1];
  const int64_t n = g.n_tokens();
  return g.view(wide, {g.hyperparameters().n_embd, n, 1, 1}, {row, row * n, row * n});
}

// A layer that predicts the token after the next one reads that token's embedding and what the layers before made of the last one.
Node joined_with_hidden(Graph& g, Node embedding, const Tensor& join) {
  const Node hidden = g.input(GraphInput::given, g.layout(embedding));
  g.in(Group::norms);
  const Node normed = g.norm("nextn.enorm", embedding);
  const Node joined = g.mul_mat(join, g.concat(normed, g.norm("nextn.hnorm", hidden), 0));
  g.operation(joined).group = Group::norms;
  return joined;
}

bool predicts_behind_next(const Model& model) {
  const std::vector<Tensor>& tensors = model.layers().front().tensors;
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return local_name(t.name) == "nextn.eh_proj.weight"; });
}

Block finish(Graph& g, Node residual_in, Node residual_out, Handed shared = {}, const MixerStates& found = {},
             const MixerStates& left = {}) {
  g.expand(residual_out);
  Block block = g.take();
  block.residual_in = residual_in;
  block.residual_out = residual_out;
  block.handed[static_cast<size_t>(Beside::state)] = {.in = found.kept, .out = left.kept};
  block.handed[static_cast<size_t>(Beside::scan)] = {.in = found.recurrence, .out = left.recurrence};
  block.handed[static_cast<size_t>(Beside::shared)] = shared;
  return block;
}

std::string_view output_norm(const Graph& g) {
  for (const std::string_view name : {"dec.output_norm", "enc.output_norm", "token_embd_norm"}) {
    if (g.find(name) != nullptr) return name;
  }
  return "output_norm";
}

// A head for fewer tokens than the model reads (Qwen3-TTS): nothing for the others before its own. llama.cpp takes the value to repeat from
// some weight.
Node padded_logits(Graph& g, Node logits) {
  const int64_t n_others = g.hyperparameters().n_vocab - g.ne(logits, 0);
  if (n_others <= 0) return logits;
  const Tensor& norm = g.require("output_norm");
  const Node none = g.fresh(OpKind::elementwise, {kWeight}, Layout::packed({1, 1, 1, 1}), &norm);
  g.read_as_view(none, kActivationBytes);
  return g.concat(g.repeat(none, {n_others, g.ne(logits, 1), 1, 1}), logits, 0);
}

Layout rows_of(const Model& model, int64_t n) { return Layout::packed({model.hyperparameters().n_embd, n, 1, 1}); }

// What layers hand on.
Layout states_of(const Model& model, int64_t n) {
  return Layout::packed({model.hyperparameters().n_embd, n, model.hyperparameters().n_states, 1});
}

}  // namespace

void check(const Pass& pass) {
  check_count("n_tokens", pass.n_tokens, 1);
  check_count("n_outputs", pass.n_outputs, 1);
  check_count("n_seqs", pass.n_seqs, 1);
  check_count("n_streams", pass.n_streams, 1);
  check_count("n_kv", pass.n_kv, 0);
  check_count("n_kv_window", pass.n_kv_window, 0);
}

bool loads_state_before_norm(const Model& model) {
  const auto is_norm = [](const Tensor& tensor) { return tensor.name == "token_embd_norm.weight"; };
  return reads_state_early(model.layers().front().parameters) && std::any_of(model.embedding().begin(), model.embedding().end(), is_norm);
}

Block embedding_block(const Model& model, const Pass& pass, const Layer* loads_for) {
  Graph g(model, pass, model.embedding());
  g.in(Group::embedding);
  Node current = g.look_up(g.require("token_embd"), g.input(GraphInput::tokens, Layout::packed({pass.n_tokens, 1, 1, 1}, kI32)));
  g.expand(current);
  MixerStates left;
  if (loads_for != nullptr) left = load_next_states(g, *loads_for);
  Node passed = kNoValue;
  if (const Tensor* parts = g.find("per_layer_token_embd")) {
    const int64_t n_layer = model.hyperparameters().n_layer;
    const Node rows = g.look_up(*parts, g.input(GraphInput::layer_tokens, Layout::packed({pass.n_tokens, 1, 1, 1}, kI32)));
    passed = g.map(g.reshape(rows, {parts->shape[0] / n_layer, n_layer, pass.n_tokens, 1}));
    g.expand(passed);
  }
  if (g.traits().scaled_embedding) current = g.map(current);
  if (g.traits().normed_embedding) current = g.rms(current);
  if (const Tensor* types = g.find("token_types")) {
    current = g.add(current, *types);
    g.read_as_view(current, types->type.row_bytes(types->shape[0]));  // every token is of the first type
  }
  if (const Tensor* places = g.find("position_embd")) {
    const Node place = g.look_up(*places, g.positions());
    current = g.traits().causal ? g.add(current, place) : g.add(place, current);
  }
  current = g.norm("token_embd_norm", current, Group::norms);  // llama.cpp keeps it with layer 0
  if (model.hyperparameters().n_deepstack == 0) return finish(g, kNoValue, current, {.out = passed}, {}, left);
  const Node wide = g.fresh(OpKind::copy, {current}, wide_rows(model, pass));
  return finish(g, kNoValue, part_of(g, wide), {.out = wide});
}

Block layer_block(const Model& model, const Layer& layer, const Pass& pass, bool is_last, const LayerChain& chain) {
  Graph g(model, pass, layer.tensors, &layer);
  const Node wide = chain.embeddings_part > 0 ? g.given(wide_rows(model, pass)) : kNoValue;
  const bool is_first = chain.embeddings_part == 1;
  const bool makes_states = g.find("per_layer_model_proj") != nullptr;
  const Node given = is_first ? part_of(g, wide) : g.given(makes_states ? rows_of(model, pass.n_tokens) : states_of(model, pass.n_tokens));
  const Tensor* join = g.find("nextn.eh_proj");
  const Node residual = join != nullptr ? joined_with_hidden(g, given, *join) : given;
  const bool is_early = reads_state_early(layer.parameters);
  MixerStates found;
  if (is_early && chain.state_is_loaded) found = given_states(g, layer);
  if (chain.passes_for != nullptr) found = given_states(g, *chain.passes_for);
  const MixerStates states = is_early && !chain.state_is_loaded ? load_states(g, layer) : found;
  const bool has_embedding = g.find("inp_gate") != nullptr;
  Handed shared;
  if (has_embedding) shared.in = g.given(layer_embeddings(g, g.find("per_layer_model_proj") != nullptr));
  const bool takes_selection = layer.parameters.is_selective && layer.parameters.indexer_dim == 0;
  if (takes_selection) g.select_cells(shared.in = g.given(selection(model, pass)));
  const bool drop_rows = is_last && late_rows(g) == LateRows::no;
  WithEmbedding result;
  if (layer.parameters.mixer == Mixer::token_shift) {
    const bool mixes_values = g.find("time_mix_v1") != nullptr;
    if (mixes_values && !layer.parameters.gives_value) shared.in = g.given(rows_of(model, pass.n_tokens));
    Node first_value = shared.in;
    result.output = build_shifting_layer(g, residual, drop_rows, states, first_value);
    if (mixes_values && !is_last) shared.out = first_value;
  } else if (model.hyperparameters().n_states > 1) {
    result = build_layer_of_states(g, residual, shared.in);
  } else if (g.traits().is_guessed) {
    result.output = build_guessed_layer(g, layer, residual, drop_rows);
  } else if (g.traits().scales_normed_input) {
    result.output = layer_on_normed_inputs(g, residual, drop_rows, states.recurrence);
  } else {
    const bool sequential = g.traits().sum == Sum::sequential;
    result.output = sequential ? sequential_layer(g, residual, drop_rows, states.kept) : parallel_layer(g, residual, drop_rows);
    if (has_embedding) result = add_layer_embedding(g, result.output, shared.in, residual);
    if (const Tensor* scale = g.find("layer_output_scale")) result.output = g.mul(result.output, *scale);
  }
  if (const Tensor* direction = g.find("control_vector")) {
    g.in(Group::norms);
    result.output = g.add(result.output, *direction);
    g.read_aside(result.output);
  }
  MixerStates left;
  if (chain.loads_for != nullptr) {
    left = load_next_states(g, *chain.loads_for);
  } else if (chain.passes_for != nullptr) {
    left = found;
  }
  if (has_embedding && !is_last) shared.out = result.embeddings;
  if (chain.passes_selection) shared.out = g.selected_cells();
  if (wide == kNoValue) return finish(g, given, result.output, shared, found, left);
  g.in(Group::norms);
  const Node output = g.add(result.output, part_of(g, wide));
  const bool is_last_part = chain.embeddings_part == model.hyperparameters().n_deepstack;
  return finish(g, is_first ? kNoValue : given, output, {.in = wide, .out = is_last_part ? kNoValue : wide});
}

Block head_block(const Model& model, const Pass& pass) {
  Graph g(model, pass, model.head());
  const LateRows late = late_rows(g);
  const Node residual = g.given(states_of(model, late == LateRows::no ? pass.n_outputs : pass.n_tokens));
  g.in(Group::head);
  Node current = model.hyperparameters().n_states > 1 ? join_states(g, residual) : residual;
  if (late == LateRows::behind_layers) current = g.output_rows(current);
  const bool keeps = !predicts_behind_next(model);
  const auto keep_and_select = [&](LateRows when) {
    if (late != when) return;
    if (keeps) g.keep(current);
    current = g.output_rows(current);
  };
  keep_and_select(LateRows::before_norm);
  current = g.norm(output_norm(g), current, Group::head);
  keep_and_select(LateRows::behind_norm);
  if (keeps) g.keep(current);
  if (g.traits().scaled_head_input) current = g.map(current);
  if (!model.head().empty() && g.traits().predicts) {
    const Tensor* weight = g.find("output");
    current = g.mul_mat(weight != nullptr ? *weight : g.require("token_embd"), current);
    g.operation(current).group = Group::head;
    if (const Tensor* bias = g.find_bias("output")) current = g.add(current, *bias);
    current = padded_logits(g, current);
    if (g.traits().scaled_logits) current = g.map(current);
    if (g.traits().logits_softcap > 0.0) {
      g.expand(current);
      const size_t first = g.n_listed();
      for (int i = 0; i < 3; ++i) current = g.map(current);  // divide, tanh, multiply
      g.expand(current);
      g.fuse(first, {}, 0);
    }
  }
  return finish(g, residual, current);
}

}  // namespace pshard
