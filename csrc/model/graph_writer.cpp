#include "model/graph_writer.hpp"

#include <utility>

namespace pshard {

Node GraphWriter::leaf(const Layout& layout) {
  nodes_.push_back({.layout = layout, .value = {.n_bytes = layout.n_bytes()}, .operation = {}, .is_leaf = true});
  return static_cast<Node>(nodes_.size()) - 1;
}

Node GraphWriter::input(GraphInput input, const Layout& layout) {
  Node& node = input_[static_cast<size_t>(input)];
  if (node == kNoValue) {
    node = leaf(layout);
    value(node).is_input = true;
    value(node).input = input;
  }
  return node;
}

Node GraphWriter::describe(OpKind kind, std::initializer_list<int32_t> operands, const Layout& layout) {
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

Node GraphWriter::fresh(OpKind kind, std::initializer_list<int32_t> operands, const Layout& layout, const Tensor* weight) {
  const Node node = describe(kind, operands, layout);
  operation(node).weight = weight;
  operation(node).flop = static_cast<double>(layout.n_elements());
  if (weight != nullptr) operation(node).offload_rows = layout.n_rows();
  return node;
}

Node GraphWriter::element_wise(std::initializer_list<int32_t> operands, const Layout& layout, const Tensor* weight) {
  const Node node = fresh(OpKind::elementwise, operands, layout, weight);
  Operation& made = operation(node);
  for (size_t i = 0; i < made.inputs.size(); ++i) {
    const int32_t operand = made.inputs[i];
    if (is_value(operand) && this->layout(operand) == layout) made.overwrites |= uint8_t{1} << i;
  }
  return node;
}

Node GraphWriter::mul_mat(const Tensor& weight, Node x) {
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

Node GraphWriter::mul_mat(Node a, Node b) {
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

Node GraphWriter::mul_mat_id(const Tensor& weight, Node x, Node ids) {
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

Node GraphWriter::glu(Node gate, Node up) {
  Layout out = packed_like(gate);
  if (up == kNoValue) out = Layout::packed({out.ne[0] / 2, out.ne[1], out.ne[2], out.ne[3]});
  return stepped(Step::gate, fresh(OpKind::elementwise, {gate, up}, out));
}

Node GraphWriter::sum_rows(Node x) {
  const std::array<int64_t, 4> ne = layout(x).ne;
  return fresh(OpKind::elementwise, {x}, Layout::packed({1, ne[1], ne[2], ne[3]}));
}

Node GraphWriter::concat(Node a, Node b, size_t dimension) {
  Layout out = packed_like(a);
  out.ne.at(dimension) += ne(b, dimension);
  return fresh(OpKind::copy, {a, b}, Layout::packed(out.ne));
}

Node GraphWriter::get_rows(Node x, Node ids) {
  const Layout& rows = layout(ids);
  return fresh(OpKind::get_rows, {x, ids}, Layout::packed({ne(x, 0), rows.ne[0], rows.ne[1], rows.ne[2]}));
}

Node GraphWriter::sum_of_experts(Node outputs, Node weights) {
  constexpr int64_t kMaxFused = 15;  // CUDA weighs and adds so many outputs in one kernel
  expand(outputs);
  const size_t first = n_listed();
  const Node weighted = weights != kNoValue ? mul(outputs, weights) : outputs;
  expand(weighted);
  const std::array<int64_t, 4> ne = layout(weighted).ne;
  const int64_t row = layout(weighted).nb[2];
  std::vector<Node> of_one;
  for (int64_t i = 0; i < ne[1]; ++i) {
    of_one.push_back(view(weighted, {ne[0], ne[2], 1, 1}, {row, row * ne[2], row * ne[2]}));
    expand(of_one.back());
  }
  if (of_one.size() == 1) return cont(of_one[0]);
  Node sum = of_one[0];
  for (size_t i = 1; i < of_one.size(); ++i) {
    sum = add(sum, of_one[i]);
    expand(sum);
  }
  if (weights != kNoValue && ne[1] <= kMaxFused) fuse(first, {outputs, weights}, 0);
  return sum;
}

Node GraphWriter::write_rows(Node into, Node rows, Node ids) {
  const Node node = fresh(OpKind::copy, {rows, ids, into}, packed_like(into));
  operation(node).writes_into = 2;
  return node;
}

Node GraphWriter::alias(Node x, const Layout& layout) {
  const Node node = describe(OpKind::copy, {x}, layout);
  operation(node).is_view = true;
  operation(node).activation_bytes = 0;
  return node;
}

Node GraphWriter::reshape(Node x, std::array<int64_t, 4> ne) { return alias(x, Layout::packed(ne, layout(x).type)); }

Node GraphWriter::view(Node x, std::array<int64_t, 4> ne, std::array<int64_t, 3> strides) {
  const Layout& base = layout(x);
  return alias(x, {.type = base.type, .ne = ne, .nb = {base.nb[0], strides[0], strides[1], strides[2]}});
}

Node GraphWriter::slice(Node x, int64_t n_elements) {
  Layout part = layout(x);
  part.ne[0] = n_elements;
  return alias(x, part);
}

Node GraphWriter::permute(Node x, std::array<size_t, 4> axes) {
  const Layout& base = layout(x);
  Layout result = base;
  for (size_t i = 0; i < axes.size(); ++i) {
    result.ne.at(axes[i]) = base.ne[i];
    result.nb.at(axes[i]) = base.nb[i];
  }
  return alias(x, result);
}

Node GraphWriter::room(const Layout& layout) {
  const Node node = leaf(layout);
  value(node).is_room = true;
  return node;
}

void GraphWriter::fuse(size_t first, std::initializer_list<Node> values, int32_t n_behind) {
  if (!fuses_) return;
  const auto last = static_cast<int32_t>(n_listed()) - 1;
  block_.kernels.push_back({.first = static_cast<int32_t>(first), .last = last});
  for (const Node value : values) {
    if (value == kNoValue) continue;
    block_.fused.push_back({.first = static_cast<int32_t>(first), .last = last, .until = last + n_behind, .value = value});
  }
}

void GraphWriter::read_aside(Node node) {
  Operation& reader = operation(node);
  reader.weight_part_bytes = reader.weight->n_bytes;
  reader.weight_decides = false;
}

void GraphWriter::read_as_view(Node node, int64_t n_bytes) {
  read_aside(node);
  Operation& reader = operation(node);
  if (n_bytes > 0) reader.weight_part_bytes = n_bytes;
  reader.weight_is_viewed = true;
}

void GraphWriter::expand(Node node) {
  Described& described = nodes_[static_cast<size_t>(node)];
  if (described.is_listed) return;
  described.is_listed = true;
  for (const int32_t operand : described.operation.inputs) {
    if (is_value(operand)) expand(operand);
  }
  if (!described.is_leaf) {
    block_.operations.push_back(described.operation);
  } else if (described.value.is_input || described.value.is_room) {
    block_.leaves.push_back(node);
  }
}

Block GraphWriter::take() {
  for (const Described& described : nodes_) block_.values.push_back(described.value);
  return std::move(block_);
}

}  // namespace pshard
