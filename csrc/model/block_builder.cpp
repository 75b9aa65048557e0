#include "model/block_builder.hpp"

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

}  // namespace

const Tensor* BlockBuilder::find(std::string_view name) const {
  if (const Tensor* found = search(tensors_, name, ".weight")) return found;
  return search(tensors_, name, "");
}

const Tensor* BlockBuilder::find_bias(std::string_view name) const { return search(tensors_, name, ".bias"); }

const Tensor& BlockBuilder::require(std::string_view name) const {
  if (const Tensor* found = find(name)) return *found;
  throw std::invalid_argument("architecture '" + hyperparameters().architecture + "': tensor '" + std::string(name) +
                              ".weight' is missing, so its forward pass cannot be described; check that the file is complete");
}

int32_t BlockBuilder::add_value(int64_t n_bytes) {
  block_.values.push_back(Value{.n_bytes = n_bytes});
  return static_cast<int32_t>(block_.values.size()) - 1;
}

int32_t BlockBuilder::graph_input(GraphInput input, int64_t n_bytes) {
  int32_t& index = input_[static_cast<size_t>(input)];
  if (index == kNoValue) {
    index = add_value(n_bytes);
    value(index).is_input = true;
    value(index).input = input;
  }
  return index;
}

Operation& BlockBuilder::append(OpKind kind, Group group, std::initializer_list<int32_t> inputs, int32_t output) {
  Operation operation{.kind = kind, .group = group, .output = output};
  size_t n = 0;
  for (const int32_t input : inputs) {
    if (input == kNoValue) continue;
    operation.inputs.at(n++) = input;
    operation.activation_bytes += bytes_of(input);
  }
  if (output != kNoValue) operation.activation_bytes += bytes_of(output);
  block_.operations.push_back(operation);
  return block_.operations.back();
}

int32_t BlockBuilder::mul_mat(const Tensor& weight, int32_t input, int64_t rows) {
  const int64_t n = weight.shape[1];
  const int64_t k = weight.shape[0];
  const int64_t batch = weight.shape[2] * weight.shape[3];  // MLA: one matrix per head, each with all rows
  const int32_t output = add_value(n * rows * batch * kActivationBytes);
  Operation& operation = append(OpKind::mul_mat, group_of(weight.name), {input}, output);
  operation.weight = &weight;
  operation.n = n;
  operation.k = k;
  operation.m = rows;
  operation.offload_rows = rows;
  operation.flop = 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(rows) * static_cast<double>(batch);
  operation.activation_bytes = (k + n) * rows * batch * kActivationBytes;
  return output;
}

int32_t BlockBuilder::project(std::string_view name, int32_t input, int64_t rows) {
  const Tensor& weight = require(name);
  const int32_t output = mul_mat(weight, input, rows);
  const Tensor* bias = find_bias(name);
  return bias == nullptr ? output : elementwise(group_of(weight.name), {output}, bytes_of(output), bias);
}

int32_t BlockBuilder::mul_mat_id(const Tensor& weight, int32_t input, int32_t ids, int64_t rows, int64_t used) {
  const int64_t n = weight.shape[1];
  const int64_t k = weight.shape[0];
  const int64_t routes = rows * used;
  const int32_t output = add_value(n * routes * kActivationBytes);
  Operation& operation = append(OpKind::mul_mat_id, group_of(weight.name), {input, ids}, output);
  operation.weight = &weight;
  operation.n = n;
  operation.k = k;
  operation.m = routes;
  operation.offload_rows = rows;
  operation.flop = 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(routes);
  operation.activation_bytes = (k + n) * routes * kActivationBytes;
  return output;
}

int32_t BlockBuilder::product(Group group, std::initializer_list<int32_t> inputs, int64_t n, int64_t k, int64_t m, int64_t batch) {
  const int32_t output = add_value(n * m * batch * kActivationBytes);
  Operation& operation = append(OpKind::attention_kq, group, inputs, output);
  operation.n = n;
  operation.k = k;
  operation.m = m;
  operation.flop = 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(m) * static_cast<double>(batch);
  return output;
}

int32_t BlockBuilder::view(int32_t base, int64_t n_bytes) {
  const int32_t output = add_value(n_bytes);
  const Group group = block_.operations.empty() ? Group::norms : block_.operations.back().group;
  Operation& operation = append(OpKind::copy, group, {base}, output);
  operation.is_view = true;
  operation.activation_bytes = 0;
  return output;
}

int32_t BlockBuilder::elementwise(Group group, std::initializer_list<int32_t> inputs, int64_t out_bytes, const Tensor* weight) {
  const int32_t output = fresh(OpKind::elementwise, group, inputs, out_bytes, weight);
  last().in_place = true;
  return output;
}

int32_t BlockBuilder::fresh(OpKind kind, Group group, std::initializer_list<int32_t> inputs, int64_t out_bytes, const Tensor* weight) {
  const int32_t output = add_value(out_bytes);
  Operation& operation = append(kind, group, inputs, output);
  operation.weight = weight;
  if (weight != nullptr && kind != OpKind::get_rows) operation.offload_rows = out_bytes / kActivationBytes / weight->shape[0];
  operation.flop = static_cast<double>(out_bytes / kActivationBytes);
  return output;
}

int32_t BlockBuilder::norm(std::string_view name, int32_t input) {
  const Tensor* weight = find(name);
  return weight == nullptr ? input : norm(name, input, group_of(weight->name));
}

int32_t BlockBuilder::norm(std::string_view name, int32_t input, Group group) {
  const Tensor* weight = find(name);
  if (weight == nullptr) return input;
  const Tensor* bias = find_bias(name);
  const int64_t bytes = bytes_of(input);
  int32_t normed = traits().layer_norm ? fresh(OpKind::elementwise, group, {input}, bytes) : elementwise(group, {input}, bytes);
  normed = elementwise(group, {normed}, bytes, weight);
  return bias == nullptr ? normed : elementwise(group, {normed}, bytes, bias);
}

void BlockBuilder::store(Group group, std::initializer_list<int32_t> inputs, int64_t cache_bytes) {
  append(OpKind::copy, group, inputs, kNoValue).cache_bytes = cache_bytes;
}

int32_t BlockBuilder::output_rows(Group group, int32_t input, int64_t row_bytes) {
  const int32_t rows = graph_input(GraphInput::output_rows, pass_.n_outputs * 4);
  const int32_t output = fresh(OpKind::get_rows, group, {input, rows}, row_bytes * pass_.n_outputs);
  last().activation_bytes = 2 * row_bytes * pass_.n_outputs;
  return output;
}

void BlockBuilder::fuse(size_t first, std::initializer_list<int32_t> values) {
  const auto end = static_cast<int32_t>(n_operations()) - 1;
  for (const int32_t value : values) {
    if (value != kNoValue) block_.fused.push_back({.first = static_cast<int32_t>(first), .last = end, .value = value});
  }
}

Block BlockBuilder::take(int32_t residual_in, int32_t residual_out) {
  block_.residual_in = residual_in;
  block_.residual_out = residual_out;
  return std::move(block_);
}

}  // namespace pshard
