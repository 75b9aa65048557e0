#include "model/graph.hpp"

#include <stdexcept>
#include <string>
#include <utility>

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

const Tensor& Graph::require(std::string_view name) const {
  if (const Tensor* found = find(name)) return *found;
  throw std::invalid_argument("architecture '" + hyperparameters().architecture + "': tensor '" + std::string(name) +
                              ".weight' is missing, so its forward pass cannot be described; check that the file is complete");
}

Node Graph::leaf(const Layout& layout) {
  nodes_.push_back({.layout = layout, .value = {.n_bytes = layout.n_bytes()}, .operation = {}, .is_leaf = true});
  return static_cast<Node>(nodes_.size()) - 1;
}

Node Graph::input(GraphInput input, const Layout& layout) {
  Node& node = input_[static_cast<size_t>(input)];
  if (node == kNoValue) {
    node = leaf(layout);
    value(node).is_input = true;
    value(node).input = input;
  }
  return node;
}

Node Graph::positions() { return input(GraphInput::positions, Layout::packed({n_tokens() * traits().positions_per_token, 1, 1, 1}, kI32)); }

Node Graph::state_rows() { return input(GraphInput::state_rows, Layout::packed({pass_.n_seqs, 1, 1, 1}, kI32)); }

Node Graph::describe(OpKind kind, std::initializer_list<int32_t> operands, const Layout& layout) {
  const auto node = static_cast<Node>(nodes_.size());
  Operation operation{.kind = kind, .group = group_, .output = node};
  operation.activation_bytes = layout.data_bytes();
  size_t n = 0;
  for (const int32_t operand : operands) {
    if (operand == kNoValue) continue;
    operation.inputs.at(n++) = operand;
    if (is_value(operand)) operation.activation_bytes += this->layout(operand).data_bytes();
  }
  nodes_.push_back({.layout = layout, .value = {.n_bytes = layout.n_bytes()}, .operation = operation});
  return node;
}

Node Graph::fresh(OpKind kind, std::initializer_list<int32_t> operands, const Layout& layout, const Tensor* weight) {
  const Node node = describe(kind, operands, layout);
  operation(node).weight = weight;
  operation(node).flop = static_cast<double>(layout.n_elements());
  if (weight != nullptr) operation(node).offload_rows = layout.n_rows();
  return node;
}

Node Graph::element_wise(std::initializer_list<int32_t> operands, const Layout& layout, const Tensor* weight) {
  const Node node = fresh(OpKind::elementwise, operands, layout, weight);
  Operation& made = operation(node);
  for (size_t i = 0; i < made.inputs.size(); ++i) {
    const int32_t operand = made.inputs[i];
    if (is_value(operand) && !value(operand).is_input && this->layout(operand) == layout) made.overwrites |= uint8_t{1} << i;
  }
  return node;
}

Node Graph::mul_mat(const Tensor& weight, Node x) {
  const Layout in = layout(x);
  const int64_t n = weight.shape[1];
  const int64_t k = weight.shape[0];
  const int64_t rows = in.n_rows();
  const Layout out = Layout::packed({n, in.ne[1], in.ne[2], in.ne[3]});
  const Node node = describe(OpKind::mul_mat, {kWeight, x}, out);
  Operation& product = operation(node);
  product.group = group_of(weight.name);
  product.weight = &weight;
  product.n = n;
  product.k = k;
  product.m = rows / (weight.shape[2] * weight.shape[3]);  // MLA: one matrix per head, each with all tokens
  product.offload_rows = out.ne[1];
  product.flop = 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(rows);
  product.activation_bytes = (k + n) * rows * kActivationBytes;
  return node;
}

Node Graph::mul_mat(Node a, Node b) {
  const int64_t k = ne(a, 0);
  const Layout out = Layout::packed({ne(a, 1), ne(b, 1), ne(b, 2), ne(b, 3)});
  const Node node = describe(OpKind::attention_kq, {a, b}, out);
  Operation& product = operation(node);
  product.n = out.ne[0];
  product.k = k;
  product.m = out.ne[1];
  product.flop = 2.0 * static_cast<double>(k) * static_cast<double>(out.n_elements());
  return node;
}

Node Graph::mul_mat_id(const Tensor& weight, Node x, Node ids) {
  const int64_t n = weight.shape[1];
  const int64_t k = weight.shape[0];
  const int64_t used = ne(ids, 0);
  const int64_t rows = ne(ids, 1);
  const Node node = describe(OpKind::mul_mat_id, {kWeight, x, ids}, Layout::packed({n, used, rows, 1}));
  Operation& product = operation(node);
  product.group = group_of(weight.name);
  product.weight = &weight;
  product.n = n;
  product.k = k;
  product.m = rows * used;
  product.offload_rows = rows;
  product.flop = 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(product.m);
  product.activation_bytes = (k + n) * product.m * kActivationBytes;
  return node;
}

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

Node Graph::glu(Node gate, Node up) {
  Layout out = packed_like(gate);
  if (up == kNoValue) out = Layout::packed({out.ne[0] / 2, out.ne[1], out.ne[2], out.ne[3]});
  return fresh(OpKind::elementwise, {gate, up}, out);
}

Node Graph::norm(Node x) { return traits().layer_norm ? fresh(OpKind::elementwise, {x}, packed_like(x)) : rms(x); }

Node Graph::norm(std::string_view name, Node x) {
  const Tensor* weight = find(name);
  return norm(name, x, weight == nullptr ? Group::norms : group_of(weight->name));
}

Node Graph::norm(std::string_view name, Node x, Group group) {
  const Tensor* weight = find(name);
  if (weight == nullptr && !(traits().unweighted_norms && is_main_norm(name))) return x;
  const Group outer = std::exchange(group_, group);
  Node node = norm(x);
  operation(node).is_norm = layer_ != nullptr || group == Group::norms;
  if (weight != nullptr) node = mul(node, *weight);
  if (const Tensor* bias = find_bias(name)) node = add(node, *bias);
  group_ = outer;
  return node;
}

Node Graph::concat(Node a, Node b, size_t dimension) {
  Layout out = packed_like(a);
  out.ne.at(dimension) += ne(b, dimension);
  return fresh(OpKind::copy, {a, b}, Layout::packed(out.ne));
}

Node Graph::get_rows(Node x, Node ids) {
  const Layout& rows = layout(ids);
  return fresh(OpKind::get_rows, {x, ids}, Layout::packed({ne(x, 0), rows.ne[0], rows.ne[1], rows.ne[2]}));
}

Node Graph::write_rows(Node into, Node rows, Node ids) {
  const Node node = fresh(OpKind::copy, {rows, ids, into}, packed_like(into));
  operation(node).writes_into = 2;
  return node;
}

Node Graph::alias(Node x, const Layout& layout) {
  const Node node = describe(OpKind::copy, {x}, layout);
  operation(node).is_view = true;
  operation(node).activation_bytes = 0;
  return node;
}

Node Graph::reshape(Node x, std::array<int64_t, 4> ne) { return alias(x, Layout::packed(ne, layout(x).type)); }

Node Graph::view(Node x, std::array<int64_t, 4> ne, std::array<int64_t, 3> strides) {
  const Layout& base = layout(x);
  return alias(x, {.type = base.type, .ne = ne, .nb = {base.nb[0], strides[0], strides[1], strides[2]}});
}

Node Graph::slice(Node x, int64_t n_elements) {
  Layout part = layout(x);
  part.ne[0] = n_elements;
  return alias(x, part);
}

Node Graph::permute(Node x, std::array<size_t, 4> axes) {
  const Layout& base = layout(x);
  Layout result = base;
  for (size_t i = 0; i < axes.size(); ++i) {
    result.ne.at(axes[i]) = base.ne[i];
    result.nb.at(axes[i]) = base.nb[i];
  }
  return alias(x, result);
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

void Graph::expand(Node node) {
  Described& described = nodes_[static_cast<size_t>(node)];
  if (described.is_listed) return;
  described.is_listed = true;
  for (const int32_t operand : described.operation.inputs) {
    if (is_value(operand)) expand(operand);
  }
  if (!described.is_leaf) block_.operations.push_back(described.operation);
}

void Graph::fuse(size_t first, std::initializer_list<Node> values, int32_t n_behind) {
  if (pass_.pshard_runtime) return;
  const auto last = static_cast<int32_t>(n_listed()) - 1;
  for (const Node value : values) {
    if (value == kNoValue) continue;
    block_.fused.push_back({.first = static_cast<int32_t>(first), .last = last, .until = last + n_behind, .value = value});
  }
}

Block Graph::take() {
  for (const Described& described : nodes_) block_.values.push_back(described.value);
  return std::move(block_);
}

}  // namespace pshard
