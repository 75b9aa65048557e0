// Dense feed-forward networks, routed experts, and the experts that every token passes.
#include <string>

#include "model/block_builder.hpp"

namespace pshard {

namespace {

// gate and up side by side, one tensor holding both, or up alone. The activation goes with the product that reads it.
int32_t build_dense(BlockBuilder& b, int32_t normed, int64_t rows, const std::string& suffix, Group down) {
  const std::string up_name = "ffn_up" + suffix;
  const std::string gate_name = "ffn_gate" + suffix;
  const std::string down_name = "ffn_down" + suffix;
  const int64_t n_ff = b.require(down_name).shape[0];
  const int64_t bytes = n_ff * rows * kActivationBytes;
  int32_t activated = kNoValue;
  if (b.find(gate_name) != nullptr) {
    const int32_t gate = b.project(gate_name, normed, rows);
    const int32_t up = b.project(up_name, normed, rows);
    activated = b.fresh(OpKind::elementwise, down, {gate, up}, bytes);
  } else {
    const int32_t up = b.project(up_name, normed, rows);
    const bool fused = b.bytes_of(up) != bytes;  // gate and up in one tensor
    activated = fused ? b.fresh(OpKind::elementwise, down, {up}, bytes) : b.elementwise(down, {up}, bytes);
  }
  return b.project(down_name, activated, rows);
}

// CUDA weighs and adds the outputs of up to so many experts in one kernel.
constexpr int64_t kMaxFusedExperts = 15;

struct Routing {
  int32_t ids = kNoValue;      // experts of every row, best first
  int32_t weights = kNoValue;  // and what their outputs are multiplied by
};

// CUDA's top-k kernel: softmax or sigmoid gating over a power of two of experts (or two counts that models have).
bool is_fused_routing(const GraphTraits& traits, int64_t n_expert) {
  if (traits.gating == Gating::softmax_of_selected || traits.weight_before_ffn) return false;
  return (n_expert <= 512 && (n_expert & (n_expert - 1)) == 0) || n_expert == 288 || n_expert == 576;
}

Routing build_router(BlockBuilder& b, int32_t normed, int64_t rows, int64_t n_expert, int64_t used) {
  const GraphTraits& traits = b.traits();
  const int32_t logits = b.project("ffn_gate_inp", normed, rows);
  const size_t first = b.n_operations();
  const int64_t all = n_expert * rows * kActivationBytes;
  const int64_t chosen = used * rows * kActivationBytes;
  int32_t probabilities = logits;
  if (traits.gating != Gating::softmax_of_selected) probabilities = b.elementwise(Group::router, {logits}, all);
  int32_t selection = traits.weight_before_ffn ? logits : probabilities;
  if (const Tensor* bias = b.find_bias("exp_probs_b")) selection = b.elementwise(Group::router, {selection}, all, bias);
  Routing routing;
  routing.ids = b.fresh(OpKind::elementwise, Group::router, {selection}, all);  // argsort of every row
  routing.weights = b.fresh(OpKind::get_rows, Group::router, {probabilities, routing.ids}, chosen);
  if (traits.gating == Gating::softmax_of_selected) {
    routing.weights = b.reshape(b.elementwise(Group::router, {b.reshape(routing.weights)}, chosen));
  }
  const int32_t raw_weights = routing.weights;
  int32_t sum = kNoValue;
  int32_t safe_sum = kNoValue;
  if (traits.normalised_expert_weights) {
    const int64_t sums = rows * kActivationBytes;
    const int32_t flat = b.reshape(raw_weights);
    sum = b.fresh(OpKind::elementwise, Group::router, {flat}, sums);
    safe_sum = b.elementwise(Group::router, {sum}, sums);  // kept away from zero
    routing.weights = b.reshape(b.elementwise(Group::router, {flat, safe_sum}, chosen));
  }
  const int32_t unscaled = routing.weights;
  if (traits.scaled_expert_weights) routing.weights = b.elementwise(Group::router, {routing.weights}, chosen);
  if (is_fused_routing(traits, n_expert))
    b.fuse(first, {logits, probabilities, selection, routing.ids, raw_weights, sum, safe_sum, unscaled});
  return routing;
}

int32_t project_experts(BlockBuilder& b, const std::string& name, int32_t input, const Routing& routing, int64_t rows, int64_t used) {
  const Tensor& weight = b.require(name);
  const int32_t output = b.mul_mat_id(weight, input, routing.ids, rows, used);
  const Tensor* bias = b.find_bias(name);
  return bias == nullptr ? output : b.elementwise(group_of(weight.name), {output, routing.ids}, b.bytes_of(output), bias);
}

int32_t build_experts(BlockBuilder& b, int32_t normed, int64_t rows) {
  const int64_t used = b.hyperparameters().n_expert_used;
  const int64_t n_embd = b.hyperparameters().n_embd;
  const Tensor& down = b.require("ffn_down_exps");
  const Routing routing = build_router(b, normed, rows, down.shape[2], used);
  int32_t input = normed;
  if (b.traits().weight_before_ffn) {
    input = b.fresh(OpKind::copy, Group::router, {normed}, n_embd * used * rows * kActivationBytes);
    input = b.elementwise(Group::router, {input, routing.weights}, b.bytes_of(input));
  }
  const int64_t bytes = down.shape[0] * used * rows * kActivationBytes;
  int32_t activated = kNoValue;
  if (b.find("ffn_gate_up_exps") != nullptr) {
    const int32_t both = project_experts(b, "ffn_gate_up_exps", input, routing, rows, used);
    activated = b.fresh(OpKind::elementwise, Group::experts_down, {both}, bytes);
  } else if (b.find("ffn_gate_exps") != nullptr) {
    const int32_t gate = project_experts(b, "ffn_gate_exps", input, routing, rows, used);
    const int32_t up = project_experts(b, "ffn_up_exps", input, routing, rows, used);
    activated = b.fresh(OpKind::elementwise, Group::experts_down, {gate, up}, bytes);
  } else {
    const int32_t up = project_experts(b, "ffn_up_exps", input, routing, rows, used);
    activated = b.elementwise(Group::experts_down, {up}, bytes);
  }
  int32_t experts = project_experts(b, "ffn_down_exps", activated, routing, rows, used);
  const int32_t unweighted = experts;
  const size_t first = b.n_operations();
  if (!b.traits().weight_before_ffn) {
    experts = b.elementwise(Group::experts_down, {experts, routing.weights}, b.bytes_of(experts));
  }
  const int64_t row_bytes = n_embd * rows * kActivationBytes;
  if (used == 1) return b.fresh(OpKind::copy, Group::experts_down, {experts}, row_bytes);
  int32_t sum = b.fresh(OpKind::elementwise, Group::experts_down, {experts}, row_bytes);
  b.last().activation_bytes = 3 * row_bytes;
  for (int64_t i = 2; i < used; ++i) {
    sum = b.elementwise(Group::experts_down, {sum, experts}, row_bytes);
    b.last().activation_bytes = 3 * row_bytes;
  }
  if (!b.traits().weight_before_ffn && used <= kMaxFusedExperts) b.fuse(first, {unweighted, routing.weights});
  return sum;
}

}  // namespace

int32_t build_ffn(BlockBuilder& b, int32_t normed, int64_t rows) {
  if (b.find("ffn_down_exps") == nullptr) return build_dense(b, normed, rows, "", Group::ffn_down);
  const int32_t routed = build_experts(b, normed, rows);
  if (b.find("ffn_down_shexp") == nullptr) return routed;
  int32_t shared = build_dense(b, normed, rows, "_shexp", Group::shared_down);
  if (const Tensor* gate_weight = b.find("ffn_gate_inp_shexp")) {
    int32_t gate = b.mul_mat(*gate_weight, normed, rows);
    gate = b.elementwise(group_of(gate_weight->name), {gate}, b.bytes_of(gate));  // sigmoid
    shared = b.elementwise(Group::shared_down, {shared, gate}, b.bytes_of(shared));
  }
  return b.add(Group::shared_down, routed, shared);
}

}  // namespace pshard
