// The three kinds of block: embedding, layer, head. A layer's wiring is read from the tensors that it has; forward_attention.cpp,
// forward_ffn.cpp and forward_mixers.cpp hold its parts.
#include "model/forward.hpp"

#include <limits>
#include <stdexcept>

#include "model/block_builder.hpp"

namespace pshard {

namespace {

// `scale` of a whole row block; in place.
int32_t scaled(BlockBuilder& b, Group group, int32_t input) { return b.elementwise(group, {input}, b.bytes_of(input)); }

void check_count(const char* field, int64_t value, int64_t least) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (value >= least && value <= kMost) return;
  throw std::invalid_argument("pass: " + std::string(field) + " is " + std::to_string(value) + "; it must be within " +
                              std::to_string(least) + " and " + std::to_string(kMost));
}

// Attention and FFN side by side on the layer's input; llama.cpp computes the FFN first, then the attention's output projection.
int32_t parallel_layer(BlockBuilder& b, int32_t residual, bool drop_rows, int64_t row_bytes) {
  const Pass& pass = b.pass();
  const int32_t normed = b.norm("attn_norm", residual);
  int32_t attended = build_attention(b, normed);
  int32_t ffn_input = b.find("ffn_norm") != nullptr ? residual : normed;
  int64_t rows = pass.n_tokens;
  if (drop_rows) {
    const bool same = ffn_input == residual;
    ffn_input = b.output_rows(Group::norms, ffn_input, row_bytes);
    if (same) residual = ffn_input;
    rows = pass.n_outputs;
  }
  int32_t output = build_ffn(b, b.norm("ffn_norm", ffn_input), rows);
  if (drop_rows && residual != ffn_input) residual = b.output_rows(Group::norms, residual, row_bytes);
  output = b.add(Group::norms, output, residual);
  int32_t projected = build_attention_output(b, attended, pass.n_tokens);
  if (drop_rows) projected = b.output_rows(Group::norms, projected, row_bytes);
  return b.add(Group::norms, output, projected);
}

int32_t sequential_layer(BlockBuilder& b, int32_t residual, bool drop_rows, int64_t row_bytes) {
  const Pass& pass = b.pass();
  // A "post" norm that no FFN norm follows is the FFN's own (GLM, gpt-oss, Qwen3-Next); without a first norm both are true post norms.
  const bool has_ffn_norm = b.find("ffn_norm") != nullptr;
  const bool post_norm_leads_ffn = !has_ffn_norm && b.find("attn_norm") != nullptr;
  int32_t current = kNoValue;
  if (b.parameters().mixer == Mixer::attention) {
    current = build_attention_output(b, build_attention(b, b.norm("attn_norm", residual)), pass.n_tokens);
  } else if (b.parameters().mixer == Mixer::none) {
    current = residual;
  } else if (b.find("attn_output") != nullptr) {  // both on the same input (Falcon-H1)
    const int32_t attended = build_attention_output(b, build_attention(b, b.norm("attn_norm", residual)), pass.n_tokens);
    current = b.add(Group::norms, attended, build_mixer(b, residual));
  } else {
    current = build_mixer(b, residual);
  }
  int64_t rows = pass.n_tokens;
  if (drop_rows) {
    const bool same = current == residual;
    current = b.output_rows(Group::norms, current, row_bytes);
    residual = same ? current : b.output_rows(Group::norms, residual, row_bytes);
    rows = pass.n_outputs;
  }
  if (!post_norm_leads_ffn) current = b.norm("post_attention_norm", current);
  if (b.traits().scaled_residual) current = scaled(b, Group::norms, current);
  int32_t middle = current;
  if (b.parameters().mixer != Mixer::none) middle = b.norm("attn_output_norm", b.add(Group::norms, current, residual));
  if (b.find("ffn_down") == nullptr && b.find("ffn_down_exps") == nullptr) return middle;
  const int32_t normed = b.norm(post_norm_leads_ffn ? "post_attention_norm" : "ffn_norm", middle);
  int32_t output = b.norm("post_ffw_norm", build_ffn(b, normed, rows));
  if (b.traits().scaled_residual) output = scaled(b, Group::norms, output);
  const int32_t sum = b.traits().residual_first ? b.add(Group::norms, middle, output) : b.add(Group::norms, output, middle);
  return b.norm("layer_output_norm", sum);
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

Block embedding_block(const Model& model, const Pass& pass) {
  BlockBuilder b(model, pass, model.embedding());
  const int64_t row_bytes = model.hyperparameters().n_embd * kActivationBytes;
  const int64_t bytes = row_bytes * pass.n_tokens;
  const Tensor& table = b.require("token_embd");
  int32_t current = b.fresh(OpKind::get_rows, Group::embedding, {b.graph_input(GraphInput::tokens, pass.n_tokens * 4)}, bytes, &table);
  b.last().activation_bytes = bytes + table.type.row_bytes(table.shape[0]) * pass.n_tokens;
  if (b.traits().scaled_embedding) current = scaled(b, Group::embedding, current);
  int32_t place = kNoValue;
  if (const Tensor* places = b.find("position_embd")) {
    place = b.fresh(OpKind::get_rows, Group::embedding, {b.positions()}, bytes, places);
    b.last().activation_bytes = 2 * bytes;
  }
  if (const Tensor* types = b.find("token_types")) {
    current = b.elementwise(Group::embedding, {current}, bytes, types);
    b.last().weight_part_bytes = types->type.row_bytes(types->shape[0]);  // every token is of the first type
  }
  if (place != kNoValue) current = b.elementwise(Group::embedding, {place, current}, bytes);
  current = b.norm("token_embd_norm", current, Group::norms);  // llama.cpp keeps it with layer 0
  return b.take(kNoValue, current);
}

Block layer_block(const Model& model, const Layer& layer, const Pass& pass, bool is_last) {
  BlockBuilder b(model, pass, layer.tensors, &layer);
  const int64_t row_bytes = model.hyperparameters().n_embd * kActivationBytes;
  const int32_t residual = b.add_value(row_bytes * pass.n_tokens);
  const bool drop_rows = is_last && !b.traits().late_row_selection;
  const int32_t output =
      b.traits().parallel_block ? parallel_layer(b, residual, drop_rows, row_bytes) : sequential_layer(b, residual, drop_rows, row_bytes);
  return b.take(residual, output);
}

Block head_block(const Model& model, const Pass& pass) {
  BlockBuilder b(model, pass, model.head());
  const int64_t row_bytes = model.hyperparameters().n_embd * kActivationBytes;
  const bool late = b.traits().late_row_selection;
  const int32_t residual = b.add_value(row_bytes * (late ? pass.n_tokens : pass.n_outputs));
  int32_t current = residual;
  if (late) current = b.output_rows(Group::head, current, row_bytes);
  current = b.norm(b.find("output_norm") != nullptr ? "output_norm" : "token_embd_norm", current, Group::head);
  if (!model.head().empty() && b.traits().causal) {
    const Tensor* weight = b.find("output");
    current = b.mul_mat(weight != nullptr ? *weight : b.require("token_embd"), current, pass.n_outputs);
    b.last().group = Group::head;
    if (const Tensor* bias = b.find_bias("output")) current = b.elementwise(Group::head, {current}, b.bytes_of(current), bias);
    if (b.traits().scaled_logits) current = scaled(b, Group::head, current);
    if (b.traits().logits_softcap > 0.0) {
      for (int i = 0; i < 3; ++i) current = scaled(b, Group::head, current);  // divide, tanh, multiply
    }
  }
  return b.take(residual, current);
}

}  // namespace pshard
