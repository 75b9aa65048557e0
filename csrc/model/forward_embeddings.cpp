// Token embeddings of which every layer adds a part of its own to its result (Gemma 3n, Gemma 4 E2B and E4B): looked up before the layers,
// then joined by the first layer with a projection of its input.
#include "model/graph.hpp"

namespace pshard {

namespace {

Node make_embeddings(Graph& g, Node looked_up, Node input) {
  const std::array<int64_t, 4> ne = g.layout(looked_up).ne;  // [width, layers, tokens]
  const Node projected = g.map(g.mul_mat(g.require("per_layer_model_proj"), input));
  const Node normed = g.norm("per_layer_proj_norm", g.reshape(projected, ne));
  const Node both = g.map(g.add(normed, looked_up));
  return g.cont(g.permute(both, {0, 2, 1, 3}));
}

Node layer_part(Graph& g, Node embeddings) {
  const Layout all = g.layout(embeddings);
  return g.view(embeddings, {all.ne[0], all.ne[1], 1, 1}, {all.nb[1], all.nb[2], all.nb[2]});
}

}  // namespace

WithEmbedding layer_embedding(Graph& g, Node gate_input, Node embeddings, Node input) {
  g.in(Group::norms);
  const Node gate = g.map(g.mul_mat(g.require("inp_gate"), gate_input));  // GELU
  if (g.find("per_layer_model_proj") != nullptr) embeddings = make_embeddings(g, embeddings, input);
  const Node part = g.mul(gate, layer_part(g, embeddings));
  return {.output = g.norm("post_norm", g.mul_mat(g.require("proj"), part)), .embeddings = embeddings};
}

WithEmbedding add_layer_embedding(Graph& g, Node output, Node embeddings, Node input) {
  const WithEmbedding part = layer_embedding(g, output, embeddings, input);
  g.in(Group::norms);
  return {.output = g.add(output, part.output), .embeddings = part.embeddings};
}

}  // namespace pshard
