#include "model/graph.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace pshard {

namespace {

bool is_main_norm(std::string_view name) { return name == "attn_norm" || name == "ffn_norm" || name == "output_norm"; }

const Tensor* rope_factors(const Model& model) {
  for (const Tensor& tensor : model.embedding()) {
    if (tensor.name.starts_with("rope_f")) return &tensor;
  }
  return nullptr;
}

// llama.cpp multiplies by these directly, whatever adapts them: low ranks and decays of token shifts, all of a Kimi mixer, and latent
// attention up to its output.
bool ignores_adapters(const Hyperparameters& h, const Layer* layer, std::string_view name) {
  constexpr std::array<std::string_view, 7> kAlways{"position_embd", "per_layer_", "altup_proj", "altup_unembd",
                                                    "altup_router",  "indexer",    "attn_k_b"};
  if (std::any_of(kAlways.begin(), kAlways.end(), [&](std::string_view prefix) { return name.starts_with(prefix); })) return true;
  const std::string_view stem = name.substr(0, name.find('.'));
  if (stem.starts_with("time_mix") && (stem.ends_with('1') || stem.ends_with('2'))) return true;
  if (layer == nullptr) return stem == "output" && h.traits.head_ignores_adapters;
  const bool is_channel_delta = layer->parameters.mixer == Mixer::channel_delta;
  if (stem == "attn_output") return is_channel_delta || h.traits.attention_ignores_adapters;
  return (is_channel_delta && stem.starts_with("ssm_")) || (h.kv_lora_rank > 0 && stem.starts_with("attn_"));
}

}  // namespace

const Tensor* Graph::search(const std::vector<Tensor>& tensors, std::string_view name, std::string_view suffix) const {
  for (const Tensor& tensor : tensors) {
    const std::string_view local = local_name(tensor.name);
    if (local.size() != name.size() + suffix.size() || !local.starts_with(name) || !local.ends_with(suffix)) continue;
    if (!traits().has_encoder || !is_of_encoder(tensor.name)) return &tensor;
  }
  return nullptr;
}

const Tensor* Graph::find_in_first_layer(std::string_view name) const { return search(model_.layers().front().tensors, name, ".weight"); }

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

// `product` is that of a weight with an operand. ggml does not know an adapter's matrices as weights: where they lie decides nothing.
template <typename Product>
Node Graph::adapted(const Tensor& weight, Node out, Node x, Product product) {
  const std::string_view name = local_name(weight.name);
  if (!model_.is_adapted() || ignores_adapters(hyperparameters(), layer_, name)) return out;
  for (const Tensor& down : tensors_) {
    const std::string_view local = local_name(down.name);
    if (!local.starts_with(name) || !local.substr(name.size()).starts_with(kAdapterDown)) continue;
    const std::string up = std::string(kAdapterUp) + std::string(local.substr(name.size() + kAdapterDown.size()));
    const Node narrow = product(down, x);
    read_aside(narrow);
    const Node wide = product(found(search(tensors_, name, up), name), narrow);
    read_aside(wide);
    const Node scaled = map(wide);
    operation(scaled).group = group_of(weight.name);
    out = add(out, scaled);
    operation(out).group = group_of(weight.name);
  }
  return out;
}

Node Graph::mul_mat(const Tensor& weight, Node x) {
  return adapted(weight, GraphWriter::mul_mat(weight, x), x, [&](const Tensor& part, Node y) { return GraphWriter::mul_mat(part, y); });
}

Node Graph::mul_mat_id(const Tensor& weight, Node x, Node ids) {
  return adapted(weight, GraphWriter::mul_mat_id(weight, x, ids), x,
                 [&](const Tensor& part, Node y) { return GraphWriter::mul_mat_id(part, y, ids); });
}

Node Graph::look_up(const Tensor& table, Node ids) {
  const auto rows_of = [&](const Tensor& from) {
    const Node rows = fresh(OpKind::get_rows, {kWeight, ids}, Layout::packed({from.shape[0], ne(ids, 0), 1, 1}), &from);
    operation(rows).offload_rows = 0;
    operation(rows).activation_bytes = layout(rows).n_bytes() + from.type.row_bytes(from.shape[0]) * ne(ids, 0);
    return rows;
  };
  return adapted(table, rows_of(table), ids,
                 [&](const Tensor& part, Node y) { return y == ids ? rows_of(part) : GraphWriter::mul_mat(part, y); });
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
  const bool in_window = parameters().window > 0;
  const bool scales = !pass_.pshard_runtime && !(in_window && (traits().full_layers_scale_rope || !traits().windows_scale_rope));
  const Tensor* factors = scales ? rope_factors(model_) : nullptr;
  const Node node = stepped(Step::rope, element_wise({x, positions(), factors != nullptr ? kWeight : kNoValue}, packed_like(x), factors));
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

void Graph::store(std::initializer_list<int32_t> operands, int64_t cache_bytes, Step step) {
  const Node node = describe(OpKind::copy, operands, Layout::packed({0, 1, 1, 1}));
  Operation& written = operation(node);
  written.group = Group::cache;
  written.output = kNoValue;
  written.step = step;
  written.cache_bytes = cache_bytes;
  expand(node);
}

Node Graph::output_rows(Node x) {
  const Node node = get_rows(x, input(GraphInput::output_rows, Layout::packed({pass_.n_outputs, 1, 1, 1}, kI32)));
  operation(node).activation_bytes = 2 * layout(node).n_bytes();
  return node;
}

CacheOperand cache_operand(const Layout& view) {
  constexpr int64_t kGpuRowPadding = 512;
  CacheOperand operand{.n_bytes = view.n_bytes()};
  const int64_t tail = view.ne[0] % kGpuRowPadding;
  if (view.type.block_elements > 1 && tail != 0) operand.gpu_padding_bytes = view.type.row_bytes(kGpuRowPadding - tail);
  return operand;
}

}  // namespace pshard
