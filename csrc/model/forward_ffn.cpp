// Dense feed-forward networks, routed experts, and the experts that every token passes.
#include <algorithm>
#include <string>

#include "model/graph.hpp"

namespace pshard {

namespace {

// What follows the up projection where there is no gate: one function, or two (squared ReLU).
Node activate(Graph& g, Node x) {
  x = g.map(x);
  return g.traits().squared_activation ? g.map(x) : x;
}

// gate and up side by side, one tensor holding both, or up alone. The activation goes with the product that reads it.
Node build_dense(Graph& g, Node normed, const std::string& suffix, Group down) {
  const std::string up_name = "ffn_up" + suffix;
  const std::string gate_name = "ffn_gate" + suffix;
  const std::string down_name = "ffn_down" + suffix;
  const int64_t n_ff = g.require(down_name).shape[0];
  const Node up = g.project(up_name, normed);
  const bool has_gate = g.find(gate_name) != nullptr;
  const Node gate = has_gate ? g.project(gate_name, normed) : kNoValue;
  g.in(down);
  Node activated = kNoValue;
  if (has_gate) {
    activated = g.glu(gate, up);
  } else {
    activated = g.ne(up, 0) != n_ff ? g.glu(up, kNoValue) : activate(g, up);  // wider: gate and up in one tensor
  }
  return g.project(down_name, g.norm("ffn_sub_norm", activated));
}

struct Routing {
  Node ids = kNoValue;      // experts of every row, best first
  Node weights = kNoValue;  // and what their outputs are multiplied by
};

// CUDA's top-k kernel: softmax or sigmoid gating over a power of two of experts (or two counts that models have), all in one group.
bool is_fused_routing(const GraphTraits& traits, int64_t n_expert) {
  const bool is_plain = traits.gating == Gating::softmax || traits.gating == Gating::sigmoid;
  if (!is_plain || traits.weight_before_ffn || traits.n_expert_groups > 1) return false;
  return (n_expert <= 512 && (n_expert & (n_expert - 1)) == 0) || n_expert == 288 || n_expert == 576;
}

Node top(Graph& g, Node scores, int64_t n) {
  Layout all = Layout::packed(g.layout(scores).ne, kI32);
  return g.slice(g.fresh(OpKind::elementwise, {scores}, all), n);  // all of every row are sorted
}

// Only the best groups of experts stay: a group counts by the sum of its two best.
Node mask_groups(Graph& g, Node selection, int64_t n_expert, int64_t rows) {
  const int64_t n_groups = g.traits().n_expert_groups;
  const int64_t each = n_expert / n_groups;
  const Node groups = g.reshape(selection, {each, n_groups, rows, 1});
  const Node best = top(g, groups, 2);
  Node scores = g.fresh(OpKind::get_rows, {g.reshape(groups, {1, each, n_groups, rows}), best}, Layout::packed({1, 2, n_groups, rows}));
  scores = g.fresh(OpKind::elementwise, {g.reshape(scores, {2, n_groups, rows, 1})}, Layout::packed({1, n_groups, rows, 1}));
  const Node chosen = top(g, g.reshape(scores, {n_groups, rows, 1, 1}), g.traits().n_expert_groups_used);
  const Node kept = g.fresh(OpKind::get_rows, {groups, chosen}, Layout::packed({each, g.traits().n_expert_groups_used, rows, 1}));
  const Node masked = g.write_rows(g.map(groups), kept, chosen);
  return g.reshape(masked, {n_expert, rows, 1, 1});
}

// Of the chunks that several experts share.
Node ids_of_chunks(Graph& g, Node ids) {
  const Layout packed = Layout::packed(g.layout(ids).ne);
  const Node scaled = g.map(g.fresh(OpKind::copy, {ids}, packed));
  return g.fresh(OpKind::copy, {scaled}, Layout::packed(packed.ne, kI32));
}

Routing build_router(Graph& g, Node normed, Node logits, int64_t n_expert, int64_t used) {
  const GraphTraits& traits = g.traits();
  const int64_t rows = g.ne(normed, 1);
  if (logits == kNoValue) logits = g.project("ffn_gate_inp", normed);
  g.in(Group::router);
  g.expand(logits);
  const size_t first = g.n_listed();
  const Node probabilities = traits.gating == Gating::softmax_of_selected ? logits : g.map(logits);
  Node selection = traits.weight_before_ffn ? logits : probabilities;
  if (traits.gating == Gating::softmax_chosen_by_sigmoid) selection = g.map(logits);
  const Tensor* bias = g.find_bias("exp_probs_b");
  if (bias == nullptr) bias = g.find("exp_probs_b");
  if (bias != nullptr) selection = g.add(selection, *bias);
  Node candidates = selection;
  if (traits.n_expert_groups > 1) candidates = mask_groups(g, selection, n_expert, rows);
  Routing routing;
  routing.ids = top(g, candidates, used);
  const int64_t n_routed = g.ne(logits, 0);
  if (n_routed != n_expert) routing.ids = ids_of_chunks(g, routing.ids);
  const Node raw = g.get_rows(g.reshape(probabilities, {1, n_routed, rows, 1}), routing.ids);
  routing.weights = raw;
  if (traits.gating == Gating::softmax_of_selected) {
    const Node soft = g.map(g.reshape(raw, {used, rows, 1, 1}));
    g.value(soft).is_named = false;
    routing.weights = g.reshape(soft, {1, used, rows, 1});
  }
  Node sum = kNoValue;
  Node safe_sum = kNoValue;
  if (traits.normalised_expert_weights) {
    const Node flat = g.reshape(routing.weights, {used, rows, 1, 1});
    sum = g.fresh(OpKind::elementwise, {flat}, Layout::packed({1, rows, 1, 1}));
    safe_sum = g.map(sum);  // kept away from zero
    routing.weights = g.reshape(g.mul(flat, safe_sum), {1, used, rows, 1});
  }
  const Node unscaled = routing.weights;
  if (traits.scaled_expert_weights) routing.weights = g.map(routing.weights);
  g.expand(routing.weights);
  if (is_fused_routing(traits, n_expert)) {
    // and the operation behind, which reads the result
    g.fuse(first, {logits, probabilities, selection, routing.ids, raw, sum, safe_sum, unscaled, routing.weights}, 1);
  }
  return routing;
}

Node project_experts(Graph& g, const std::string& name, Node x, const Routing& routing) {
  const Tensor& weight = g.require(name);
  const Node product = g.mul_mat_id(weight, x, routing.ids);
  const Tensor* bias = g.find_bias(name);
  if (bias == nullptr) return product;
  const Node sum = g.add_id(product, *bias, routing.ids);
  g.operation(sum).group = group_of(weight.name);
  return sum;
}

// `kind`: "_exps", or "_chexps" of chunks that several experts share.
Node build_experts(Graph& g, Node normed, Node logits, const std::string& kind = "_exps") {
  const int64_t rows = g.ne(normed, 1);
  const Tensor& down = g.require("ffn_down" + kind);
  const int64_t used = std::min(g.hyperparameters().n_expert_used, down.shape[2]);
  const Routing routing = build_router(g, normed, logits, down.shape[2], used);
  const int64_t n_in = g.ne(normed, 0);
  Node x = g.reshape(normed, {n_in, 1, rows, 1});
  if (g.traits().weight_before_ffn) x = g.mul(g.repeat(x, {n_in, used, rows, 1}), routing.weights);
  Node activated = kNoValue;
  if (g.find("ffn_gate_up_exps") != nullptr) {
    const Node both = project_experts(g, "ffn_gate_up_exps", x, routing);
    const int64_t n_ff = g.ne(both, 0) / 2;
    const Node gate = g.slice(both, n_ff);
    const Node up = g.slice(both, n_ff);
    g.in(Group::experts_down);
    activated = g.glu(gate, up);
  } else {
    const Node up = project_experts(g, "ffn_up" + kind, x, routing);
    const bool has_gate = g.find("ffn_gate" + kind) != nullptr;
    const Node gate = has_gate ? project_experts(g, "ffn_gate" + kind, x, routing) : kNoValue;
    g.in(Group::experts_down);
    activated = has_gate ? g.glu(gate, up) : activate(g, up);
  }
  Node experts = project_experts(g, "ffn_down" + kind, activated, routing);
  const bool is_product = g.operation(experts).kind == OpKind::mul_mat_id;  // else the sum with what an adapter adds is asked for f32
  if (g.traits().experts_down_on_host && is_product) {
    g.operation(experts).host_only = true;
    g.operation(experts).weight_decides = false;
  }
  g.in(Group::experts_down);
  return g.sum_of_experts(experts, g.traits().weight_before_ffn ? kNoValue : routing.weights);
}

}  // namespace

Node build_dense_and_experts(Graph& g, Node x) {
  const Node dense = g.norm("post_ffw_norm_1", build_dense(g, g.norm("ffn_norm", x), "", Group::ffn_down));
  const Node normed = g.norm("pre_ffw_norm_2", x);
  g.in(Group::router);
  const Node scaled = g.mul(g.map(g.rms(x)), g.require("ffn_gate_inp.scale"));
  const Node experts = build_experts(g, normed, g.mul_mat(g.require("ffn_gate_inp"), scaled));
  return g.add(dense, g.norm("post_ffw_norm_2", experts));
}

Node build_experts_of_input(Graph& g, Node input) { return build_experts(g, g.norm("ffn_norm_exps", input), kNoValue); }

// Experts, and behind them chunks that several of them share (GroveMoE).
Node build_experts_and_chunks(Graph& g, Node normed) {
  const Node logits = g.project("ffn_gate_inp", normed);
  const Node routed = build_experts(g, normed, logits);
  const Node chunks = build_experts(g, routed, logits, "_chexps");
  g.in(Group::experts_down);
  return g.add(routed, g.map(chunks));
}

Node build_ffn(Graph& g, Node normed, Node logits) {
  const bool has_dense = g.find("ffn_down") != nullptr;
  if (g.find("ffn_down_exps") == nullptr || g.find("ffn_norm_exps") != nullptr) return build_dense(g, normed, "", Group::ffn_down);
  if (g.find("ffn_down_chexps") != nullptr) return build_experts_and_chunks(g, normed);
  const Node routed = build_experts(g, normed, logits);
  if (has_dense) return g.map(g.add(build_dense(g, normed, "", Group::ffn_down), routed));
  if (g.find("ffn_down_shexp") == nullptr) return routed;
  Node shared = build_dense(g, normed, "_shexp", Group::shared_down);
  if (const Tensor* gate_weight = g.find("ffn_gate_inp_shexp")) {
    const Node gate = g.mul_mat(*gate_weight, normed);
    const Node activated = g.map(gate);
    shared = g.mul(shared, g.traits().shared_gate_by_ratio ? g.div(activated, gate) : activated);
  }
  const Node sum = g.add(routed, shared);
  return g.traits().halves_experts ? g.map(sum) : sum;
}

}  // namespace pshard
