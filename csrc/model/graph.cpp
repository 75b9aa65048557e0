#include "model/graph.hpp"

#include <stdexcept>
#include <string>

namespace pshard {

namespace {

const Tensor* search(const std::vector<Tensor>& tensors, std::string_view name, std::string_view suffix) {
  for (const Tensor& tensor : tensors) {
    const std::string_view local = local_name(tensor.name);
    if (local.size() == name.size() + suffix.size() && local.starts_with(name) && local.ends_with(suffix)) return &tensor;
  }
  return nullptr;
}

bool is_main_norm(std::string_view name) { return name == "attn_norm" || name == "ffn_norm" || name == "output_norm"; }

const Tensor* rope_factors(const Model& model) {
  for (const Tensor& tensor : model.embedding()) {
    if (tensor.name.starts_with("rope_f")) return &tensor;
  }
  return nullptr;
}

}  // namespace

const Tensor* Graph::find(std::string_view name) const {
  if (const Tensor* found = search(tensors_, name, ".weight")) return found;
  return search(tensors_, name, "");
}

const Tensor* Graph::find_bias(std::string_view name) const { return search(tensors_, name, ".bias"); }

const Tensor& Graph::found(const Tensor* tensor, std::string_view name) const {
  if (tensor != nullptr) return *tensor;
  throw std::invalid_argument("architecture '" + hyperparameters().architecture + "': tensor '" + std::string(name) +
                              ".weight' is missing, so its forward pass cannot be described; check that the file is complete");
}

const Tensor& Graph::require(std::string_view name) const { return found(find(name), name); }

const Tensor& Graph::require_of_head(std::string_view name) const { return found(search(model_.head(), name, ".weight"), name); }

Node Graph::positions() { return input(GraphInput::positions, Layout::packed({n_tokens() * traits().positions_per_token, 1, 1, 1}, kI32)); }

Node Graph::state_rows() { return input(GraphInput::state_rows, Layout::packed({pass_.n_seqs, 1, 1, 1}, kI32)); }

Node Graph::project(std::string_view name, Node x) {
  const Tensor& weight = require(name);
  const Node product = mul_mat(weight, x);
  const Tensor* bias = find_bias(name);
  if (bias == nullptr) return product;
  const Node sum = add(product, *bias);
  operation(sum).group = group_of(weight.name);
  return sum;
}

Node Graph::rope(Node x) {
  const bool scales = !pass_.pshard_runtime && !(traits().full_layers_scale_rope && parameters().window > 0);
  const Tensor* factors = scales ? rope_factors(model_) : nullptr;
  const Node node = element_wise({x, positions(), factors != nullptr ? kWeight : kNoValue}, packed_like(x), factors);
  operation(node).weight_decides = false;
  return node;
}

Node Graph::norm(Node x) { return traits().layer_norm ? fresh(OpKind::elementwise, {x}, packed_like(x)) : rms(x); }

Node Graph::norm(std::string_view name, Node x) {
  const Tensor* weight = find(name);
  return norm(name, x, weight == nullptr ? Group::norms : group_of(weight->name));
}

Node Graph::norm(std::string_view name, Node x, Group group) {
  const Tensor* weight = find(name);
  if (weight == nullptr && !(traits().unweighted_norms && is_main_norm(name))) return x;
  const Group outer = this->group();
  in(group);
  Node node = norm(x);
  operation(node).is_norm = layer_ != nullptr || group == Group::norms;
  if (weight != nullptr) node = mul(node, *weight);
  if (const Tensor* bias = find_bias(name)) node = add(node, *bias);
  in(outer);
  return node;
}

void Graph::store(std::initializer_list<int32_t> operands, int64_t cache_bytes) {
  const Node node = describe(OpKind::copy, operands, Layout::packed({0, 1, 1, 1}));
  Operation& written = operation(node);
  written.group = Group::cache;
  written.output = kNoValue;
  written.cache_bytes = cache_bytes;
  expand(node);
}

Node Graph::output_rows(Node x) {
  const Node node = get_rows(x, input(GraphInput::output_rows, Layout::packed({pass_.n_outputs, 1, 1, 1}, kI32)));
  operation(node).activation_bytes = 2 * layout(node).n_bytes();
  return node;
}

void Graph::fuse(size_t first, std::initializer_list<Node> values, int32_t n_behind) {
  if (pass_.pshard_runtime) return;
  const auto last = static_cast<int32_t>(n_listed()) - 1;
  for (const Node value : values) {
    if (value == kNoValue) continue;
    block().fused.push_back({.first = static_cast<int32_t>(first), .last = last, .until = last + n_behind, .value = value});
  }
}

CacheOperand cache_operand(const DataType& type, int64_t head_dim, int64_t n, int64_t rows, int64_t used) {
  constexpr int64_t kGpuRowPadding = 512;
  CacheOperand operand;
  operand.n_bytes = type.row_bytes(n) * (rows - 1) + type.row_bytes(used);
  const int64_t tail = head_dim % kGpuRowPadding;
  if (type.block_elements > 1 && tail != 0) operand.gpu_padding_bytes = type.row_bytes(kGpuRowPadding - tail);
  return operand;
}

}  // namespace pshard
