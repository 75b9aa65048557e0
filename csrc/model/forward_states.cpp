// Several hidden states side by side (Gemma 3n: alternating updates with learned augmented residuals). A layer predicts all of them from
// what the layer before left, computes with the first, and corrects all by what came of it.
#include "model/graph.hpp"

namespace pshard {

namespace {

Node magnitude(Graph& g, Node x) { return g.map(g.sum_rows(g.map(x))); }  // root of the sum of squares

// So many of the states; which of them, takes no memory.
Node some_of(Graph& g, Node states, int64_t n) {
  const Layout all = g.layout(states);
  return g.view(states, {all.ne[0], all.ne[1], n, 1}, {all.nb[1], all.nb[2], all.nb[2] * n});
}

Node scaled_like(Graph& g, Node states, Node target) { return g.div(g.mul(states, target), magnitude(g, states)); }

Node make_states(Graph& g, Node input) {
  const Tensor& project = g.require_of_head("altup_proj");
  const Node copies = g.repeat(input, {g.ne(input, 0), g.n_tokens(), project.shape[2], 1});
  return g.concat(input, scaled_like(g, g.mul_mat(project, copies), magnitude(g, input)), 2);
}

Node modalities(Graph& g, Node x) {
  const Node scaled = g.map(g.norm("altup_router_norm", x));
  return g.map(g.mul_mat(g.require("altup_router"), scaled));  // tanh
}

Node predict(Graph& g, Node states) {
  const int64_t n = g.ne(states, 2);
  const Node mixing = g.reshape(g.mul_mat(g.require("altup_predict_coef"), modalities(g, some_of(g, states, 1))), {n, n, g.n_tokens(), 1});
  const Node mixed = g.mul_mat(g.cont(g.permute(states, {1, 2, 0, 3})), mixing);
  return g.add(g.cont(g.permute(mixed, {0, 2, 1, 3})), states);
}

Node correct(Graph& g, Node predictions, Node computed) {
  const std::array<int64_t, 4> ne = g.layout(predictions).ne;
  const Node shares = g.map(g.mul_mat(g.require("altup_correct_coef"), modalities(g, computed)));
  const Node innovation = g.repeat(g.add(computed, some_of(g, predictions, 1)), ne);
  return g.add(g.mul(innovation, g.cont(g.transpose(shares), {1, ne[1], ne[2], 1})), predictions);
}

// A low-rank path beside the attention.
Node bypass(Graph& g, Node normed) {
  const Node projected = g.mul_mat(g.require("laurel_r"), g.mul_mat(g.require("laurel_l"), normed));
  return g.add(g.norm("laurel_post_norm", projected), normed);
}

// Only what lies far above the mean of its row stays.
Node keep_top(Graph& g, Node x) {
  const Node mean = g.sum_rows(x);
  const Node deviation = g.map(g.map(g.sum_rows(g.map(g.add(x, mean)))));
  return g.map(g.add(x, g.add(mean, g.map(deviation))));
}

Node build_sparse_ffn(Graph& g, Node normed) {
  const Node up = g.project("ffn_up", normed);
  Node gate = g.project("ffn_gate", normed);
  g.in(Group::ffn_down);
  if (g.parameters().is_sparse) gate = keep_top(g, gate);
  return g.project("ffn_down", g.mul(up, g.map(gate)));
}

}  // namespace

WithEmbedding build_layer_of_states(Graph& g, Node residual, Node embeddings) {
  g.in(Group::norms);
  const bool is_first = g.find("per_layer_model_proj") != nullptr;
  const Node predictions = predict(g, is_first ? make_states(g, residual) : residual);
  const Node active = some_of(g, predictions, 1);
  const Node normed = g.norm("attn_norm", active);
  const Node beside = bypass(g, normed);
  const Node attended = g.norm("post_attention_norm", build_attention(g, normed));
  g.in(Group::norms);
  const Node middle = g.map(g.add(g.add(attended, active), beside));
  const Node ffn = g.norm("post_ffw_norm", build_sparse_ffn(g, g.norm("ffn_norm", middle)));
  g.in(Group::norms);
  const Node corrected = correct(g, predictions, g.add(ffn, middle));
  const Node gate_input = g.mul(some_of(g, corrected, 1), g.require("altup_correct_scale"));
  const WithEmbedding part = layer_embedding(g, gate_input, embeddings, residual);
  g.in(Group::norms);
  const Node others = g.add(some_of(g, corrected, g.ne(corrected, 2) - 1), part.output);
  return {.output = g.concat(some_of(g, corrected, 1), others, 2), .embeddings = part.embeddings};
}

Node join_states(Graph& g, Node states) {
  const int64_t n_others = g.ne(states, 2) - 1;
  const Node projected = g.mul_mat(g.require_of_head("altup_unembd_proj"), some_of(g, states, n_others));
  const Node others = scaled_like(g, projected, magnitude(g, some_of(g, states, 1)));
  Node sum = some_of(g, states, 1);
  for (int64_t i = 0; i < n_others; ++i) sum = g.add(sum, some_of(g, others, 1));
  return g.map(sum);
}

}  // namespace pshard
