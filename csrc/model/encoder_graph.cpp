#include "model/encoder_graph.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

namespace pshard {

namespace {

// Head sizes that CUDA's fused attention has kernels for where keys and values are as wide and no queries share them
// (ggml/src/ggml-cuda/fattn.cu).
bool gpu_attends(int64_t head_dim) {
  static const std::set<int64_t> kHeadDims{40, 64, 72, 80, 96, 112, 128, 256};
  return kHeadDims.contains(head_dim);
}

constexpr int32_t kBf16 = 30;

int64_t steps(int64_t size, int64_t kernel, int64_t stride, int64_t padding) { return (size + 2 * padding - kernel) / stride + 1; }

int64_t aligned(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

EncoderGraph::EncoderGraph(const Encoder& encoder, const EncoderInput& input) : encoder_(encoder), input_(input) {
  for (const Tensor& tensor : encoder.tensors) tensors_.emplace(tensor.name, &tensor);
  n_embd_ = number("embedding_length");
  n_head_ = number("attention.head_count");
  n_head_kv_ = number("attention.head_count_kv", n_head_);
  head_dim_ = number("attention.head_dim", 0);
  if (head_dim_ == 0 && n_head_ > 0) head_dim_ = n_embd_ / n_head_;
  n_layer_ = number("block_count");
  patch_ = encoder.is_of_sound ? 1 : number("patch_size");
  if (patch_ < 1) throw std::invalid_argument("projector '" + encoder.kind + "': patch_size is " + std::to_string(patch_));
}

int64_t EncoderGraph::number(std::string_view key) const {
  const auto found = encoder_.numbers.find(key);
  if (found != encoder_.numbers.end() && !found->second.empty()) return found->second.front();
  throw std::invalid_argument("projector '" + encoder_.kind + "': the file has no number '" + std::string(key) +
                              "', so its forward pass cannot be described; convert it again");
}

int64_t EncoderGraph::number(std::string_view key, int64_t otherwise) const {
  const auto found = encoder_.numbers.find(key);
  return found != encoder_.numbers.end() && !found->second.empty() ? found->second.front() : otherwise;
}

std::vector<int64_t> EncoderGraph::numbers(std::string_view key) const {
  const auto found = encoder_.numbers.find(key);
  return found != encoder_.numbers.end() ? found->second : std::vector<int64_t>{};
}

int64_t EncoderGraph::merge(int64_t otherwise) const { return number("spatial_merge_size", number("projector.scale_factor", otherwise)); }

const Tensor* EncoderGraph::find(std::string_view name) const {
  const auto weight = tensors_.find(std::string(name) + ".weight");
  if (weight != tensors_.end()) return weight->second;
  const auto bare = tensors_.find(name);
  return bare != tensors_.end() ? bare->second : nullptr;
}

const Tensor* EncoderGraph::find_bias(std::string_view name) const {
  const auto bias = tensors_.find(std::string(name) + ".bias");
  return bias != tensors_.end() ? bias->second : nullptr;
}

const Tensor& EncoderGraph::require(std::string_view name) const {
  if (const Tensor* found = find(name)) return *found;
  throw std::invalid_argument("projector '" + encoder_.kind + "': tensor '" + std::string(name) +
                              "' is missing, so its forward pass cannot be described; check that the file is complete");
}

std::string EncoderGraph::layer_name(int64_t layer, std::string_view part) const {
  return std::string(encoder_.is_of_sound ? "a.blk." : "v.blk.") + std::to_string(layer) + "." + std::string(part);
}

Node EncoderGraph::given_input(const Layout& layout) {
  if (n_given_ == kGivenInputCount) throw std::invalid_argument("projector '" + encoder_.kind + "': more inputs than are counted");
  return input(static_cast<GraphInput>(static_cast<int>(GraphInput::given) + n_given_++), layout);
}

Node EncoderGraph::raw(int64_t channels) { return floats({input_.width, input_.height, channels, input_.n_images}); }

Node EncoderGraph::indices(int64_t n, int64_t n_rows) { return given_input(Layout::packed({n, n_rows, 1, 1}, kI32)); }

Node EncoderGraph::floats(std::array<int64_t, 4> ne) { return given_input(Layout::packed(ne)); }

Node EncoderGraph::cont(const Operand& x, std::array<int64_t, 4> ne) {
  if (x.weight == nullptr) return cont(x.node, ne);
  return fresh(OpKind::copy, {kWeight}, Layout::packed(ne, x.weight->type), x.weight);
}

Node EncoderGraph::concat(const Tensor& a, Node b, size_t dimension) {
  Layout out = layout(b);
  out.ne.at(dimension) += a.shape.at(dimension);
  return fresh(OpKind::copy, {kWeight, b}, Layout::packed(out.ne), &a);
}

Node EncoderGraph::concat(Node a, const Tensor& b, size_t dimension) {
  Layout out = layout(a);
  out.ne.at(dimension) += b.shape.at(dimension);
  return fresh(OpKind::copy, {a, kWeight}, Layout::packed(out.ne), &b);
}

Node EncoderGraph::look_up(const Tensor& table, Node rows) {
  return fresh(OpKind::get_rows, {kWeight, rows}, Layout::packed({table.shape[0], ne(rows, 0), 1, 1}), &table);
}

Node EncoderGraph::cast(Node x, const DataType& type) { return fresh(OpKind::copy, {x}, Layout::packed(layout(x).ne, type)); }

Node EncoderGraph::in_place(Node x) {
  const Node out = map(x);
  operation(out).overwrites = 0;
  operation(out).writes_into = 0;
  return out;
}

// A weight as the right operand: as many rows of results as it has, one after the other.
Node EncoderGraph::product(Node x, const Tensor& weight, int64_t rows, int64_t n) {
  const Node node = fresh(OpKind::mul_mat, {x, kWeight}, Layout::packed({rows, n, 1, 1}), &weight);
  Operation& made = operation(node);
  made.n = n;
  made.k = ne(x, 0);
  made.m = rows;
  made.flop = 2.0 * static_cast<double>(n) * static_cast<double>(made.k) * static_cast<double>(rows);
  return node;
}

Node EncoderGraph::linear(std::string_view name, Node x) {
  Node out = mul_mat(require(name), clamps_ ? map(x) : x);
  if (clamps_) out = map(out);
  const Tensor* bias = find_bias(name);
  return bias != nullptr ? add(out, *bias) : out;
}

Node EncoderGraph::plain_norm(Node x, NormKind kind) {
  return kind == NormKind::rms ? rms(x) : fresh(OpKind::elementwise, {x}, packed_like(x));
}

Node EncoderGraph::norm(std::string_view name, Node x, NormKind kind) {
  Node out = plain_norm(x, kind);
  if (const Tensor* weight = find(name)) out = mul(out, *weight);
  if (const Tensor* bias = find_bias(name)) out = add(out, *bias);
  return out;
}

Node EncoderGraph::ffn(std::string_view up, std::string_view down, Node x, int activations, std::string_view gate) {
  Node out = linear(up, x);
  if (!gate.empty() && has(gate)) {
    out = glu(linear(gate, x), out);
  } else {
    for (int i = 0; i < activations; ++i) out = map(out);
  }
  return linear(down, out);
}

// Columns of a convolution are f16 unless its kernel is bf16.
DataType EncoderGraph::column_type(const Tensor& kernel) const {
  if (keeps_f32_columns_) return kernel.type.id == kF16.id ? kF16 : kF32;
  return kernel.type.id == kBf16 ? kF32 : kF16;
}

Node EncoderGraph::conv_2d_direct(std::string_view name, Node x, int64_t stride, int64_t padding) {
  const Tensor& kernel = require(name);
  const Layout out = Layout::packed(
      {steps(ne(x, 0), kernel.shape[0], stride, padding), steps(ne(x, 1), kernel.shape[1], stride, padding), kernel.shape[3], ne(x, 3)});
  const Node made = fresh(OpKind::scan, {kWeight, x}, out, &kernel);
  operation(made).flop =
      2.0 * static_cast<double>(kernel.shape[0] * kernel.shape[1] * kernel.shape[2]) * static_cast<double>(out.n_elements());
  return made;
}

Node EncoderGraph::conv_2d_by_channel_direct(std::string_view name, Node x, int64_t stride, int64_t padding) {
  const Tensor& kernel = require(name);
  const Layout out = Layout::packed(
      {steps(ne(x, 0), kernel.shape[0], stride, padding), steps(ne(x, 1), kernel.shape[1], stride, padding), ne(x, 2), ne(x, 3)});
  const Node made = fresh(OpKind::scan, {kWeight, x}, out, &kernel);
  operation(made).flop = 2.0 * static_cast<double>(kernel.shape[0] * kernel.shape[1]) * static_cast<double>(out.n_elements());
  return made;
}

Node EncoderGraph::numbered(int64_t n) { return cast(fresh(OpKind::copy, {}, Layout::packed({n, 1, 1, 1})), kI32); }

Node EncoderGraph::conv_2d(std::string_view name, Node x, int64_t stride, int64_t padding) {
  const Tensor& kernel = require(name);
  const int64_t columns = steps(ne(x, 0), kernel.shape[0], stride, padding);
  const int64_t rows = steps(ne(x, 1), kernel.shape[1], stride, padding);
  const int64_t images = ne(x, 3);
  const int64_t column = kernel.shape[0] * kernel.shape[1] * kernel.shape[2];
  const Node unfolded = fresh(OpKind::copy, {kWeight, x}, Layout::packed({column, columns, rows, images}, column_type(kernel)), &kernel);
  const int64_t n = columns * rows * images;
  const Node made = product(reshape(unfolded, column, n), kernel, n, kernel.shape[3]);
  return cont(permute(reshape(made, columns, rows, images, kernel.shape[3]), {0, 1, 3, 2}));
}

Node EncoderGraph::conv_2d_by_channel(std::string_view name, Node x, int64_t stride, int64_t padding) {
  const Tensor& kernel = require(name);
  const int64_t columns = steps(ne(x, 0), kernel.shape[0], stride, padding);
  const int64_t rows = steps(ne(x, 1), kernel.shape[1], stride, padding);
  const int64_t channels = ne(x, 2);
  const int64_t images = ne(x, 3);
  const int64_t column = kernel.shape[0] * kernel.shape[1];
  const Node planes = reshape(x, ne(x, 0), ne(x, 1), 1, channels * images);
  const Node unfolded =
      fresh(OpKind::copy, {kWeight, planes}, Layout::packed({column, columns, rows, channels * images}, column_type(kernel)), &kernel);
  const Node by_channel = reshape(unfolded, column, columns * rows, channels, images);
  const Node made = fresh(OpKind::mul_mat, {kWeight, by_channel}, Layout::packed({1, columns * rows, channels, images}), &kernel);
  return reshape(made, columns, rows, channels, images);
}

Node EncoderGraph::conv_1d(std::string_view name, Node x, int64_t stride, int64_t padding) {
  const Tensor& kernel = require(name);
  const int64_t n = steps(ne(x, 0), kernel.shape[0], stride, padding);
  const int64_t column = kernel.shape[0] * kernel.shape[1];
  const Node unfolded = fresh(OpKind::copy, {kWeight, x}, Layout::packed({column, n, ne(x, 2), 1}, column_type(kernel)), &kernel);
  const Node made = product(reshape(unfolded, column, n * ne(x, 2)), kernel, n * ne(x, 2), kernel.shape[2]);
  return reshape(made, n, kernel.shape[2], ne(x, 2));
}

Node EncoderGraph::flat_product(const Tensor& kernel, Node columns) {
  const int64_t n = kernel.shape[2] * kernel.shape[3];
  const Node made = fresh(OpKind::mul_mat, {kWeight, columns}, Layout::packed({n, ne(columns, 1), 1, 1}), &kernel);
  Operation& product = operation(made);
  product.n = n;
  product.k = ne(columns, 0);
  product.m = ne(columns, 1);
  product.flop = 2.0 * static_cast<double>(product.n) * static_cast<double>(product.k) * static_cast<double>(product.m);
  return made;
}

Node EncoderGraph::unfold(const Operand& kernel, Node x, int64_t side, const DataType& type) {
  const Layout out = Layout::packed({side * side * ne(x, 2), ne(x, 0) / side, ne(x, 1) / side, ne(x, 3)}, type);
  return fresh(OpKind::copy, {kernel.weight != nullptr ? kWeight : kernel.node, x}, out, kernel.weight);
}

Node EncoderGraph::pool_2d(Node x, int64_t columns, int64_t rows) {
  return fresh(OpKind::copy, {x}, Layout::packed({ne(x, 0) / columns, ne(x, 1) / rows, ne(x, 2), ne(x, 3)}));
}

Node EncoderGraph::pad(Node x, std::array<int64_t, 4> more) {
  std::array<int64_t, 4> out = layout(x).ne;
  for (size_t i = 0; i < out.size(); ++i) out.at(i) += more.at(i);
  return fresh(OpKind::copy, {x}, Layout::packed(out, layout(x).type));
}

Node EncoderGraph::as_image(Node x) { return cont(transpose(x), {columns(), rows(), ne(x, 0), n_images()}); }

Node EncoderGraph::as_rows(Node x) { return cont(transpose(reshape(x, ne(x, 0) * ne(x, 1), ne(x, 2), ne(x, 3)))); }

Node EncoderGraph::channels_first(Node x) { return cont(permute(reshape(x, ne(x, 0), columns(), rows()), {2, 0, 1, 3})); }

Node EncoderGraph::patches() {
  const Node convolved = conv_2d("v.patch_embd", raw(), patch_, 0);
  Node out = cont(transpose(reshape(convolved, n_patches(), n_embd_, input_.n_images)));
  if (const Tensor* bias = find_bias("v.patch_embd")) out = add(out, *bias);
  return out;
}

Node EncoderGraph::grouped(const Operand& x, int64_t group) {
  const Node lines = cont(x, {n_embd_ * group, columns() / group, rows(), 1});
  const Node blocks = reshape(lines, n_embd_ * group, columns() / group, group, rows() / group);
  return cont(permute(blocks, {0, 2, 1, 3}), {n_embd_, n_patches(), 1, 1});
}

Node EncoderGraph::grouped_patches(int64_t group) {
  const Node image = raw();
  const Node first = conv_2d("v.patch_embd", image, patch_, 0);
  const Node both = add(first, conv_2d("v.patch_embd.weight.1", image, patch_, 0));
  return grouped(permute(both, {1, 2, 0, 3}), group);
}

Operand EncoderGraph::position_table() {
  const Tensor& table = require("v.position_embd");
  const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(table.shape[1])));
  if (rows() == side && columns() == side) return table;
  const Node resized = fresh(OpKind::copy, {kWeight}, Layout::packed({columns(), rows(), n_embd_, 1}, table.type), &table);
  return cont(permute(resized, {1, 2, 0, 3}), {n_embd_, n_patches(), 1, 1});
}

Node EncoderGraph::attend(std::string_view out, Node q, Node k, Node v, Node mask, const Tensor* sinks) {
  for (const Node node : {q, k, v}) expand(node);
  q = permute(q, {0, 2, 1, 3});
  k = permute(k, {0, 2, 1, 3});
  const int32_t sink = sinks != nullptr ? kWeight : kNoValue;
  Node joined = kNoValue;
  if (input_.flash_attn) {
    k = cast(k, kF16);
    v = cast(permute(v, {0, 2, 1, 3}), kF16);
    if (mask != kNoValue) mask = cast(mask, kF16);
    const Node made = fresh(OpKind::attention, {q, k, v, mask, sink}, Layout::packed({ne(v, 0), ne(q, 2), ne(q, 1), ne(q, 3)}), sinks);
    operation(made).host_only = !gpu_attends(ne(k, 0)) || (mask != kNoValue && ne(mask, 2) != 1);
    operation(made).weight_decides = false;
    joined = reshape(made, ne(made, 0) * ne(made, 1), ne(made, 2) * ne(made, 3));
  } else {
    const Node values = cont(permute(v, {1, 2, 0, 3}));
    const Node scores = mul_mat(k, q);
    const Node weights = element_wise({scores, mask, sink}, layout(scores), sinks);
    operation(weights).weight_decides = false;
    const Node heads = permute(mul_mat(values, weights), {0, 2, 1, 3});
    joined = cont(heads, {ne(heads, 0) * ne(heads, 1), ne(heads, 2) * ne(heads, 3), 1, 1});
  }
  return has(out) ? linear(out, joined) : joined;
}

Node EncoderGraph::heads(Node x, int64_t n_head, int64_t n_positions, int64_t n_batch) {
  return reshape(x, head_dim_, n_head, n_positions, n_batch);
}

Node EncoderGraph::layer_ffn(int64_t index, Node x, int activations) {
  const auto name = [&](std::string_view part) { return layer_name(index, part); };
  // Older files have the names of the two projections the wrong way round.
  const bool is_swapped = require(name("ffn_down")).shape[0] == n_embd_ && require(name("ffn_up")).shape[0] != n_embd_;
  const std::string up = name(is_swapped ? "ffn_down" : "ffn_up");
  const std::string down = name(is_swapped ? "ffn_up" : "ffn_down");
  return ffn(up, down, x, activations, name("ffn_gate"));
}

// Sigmoid gating, the weights of the chosen ones normalised.
Node EncoderGraph::layer_experts(int64_t index, Node x) {
  const auto weight = [&](std::string_view part) -> const Tensor& { return require(layer_name(index, part)); };
  const Tensor& gates = weight("ffn_gate_exps");
  const int64_t n_expert = gates.shape[2];
  const int64_t used = std::min(number("expert_used_count"), n_expert);
  const int64_t n = ne(x, 1);
  const Node probabilities = map(mul_mat(weight("ffn_gate_inp"), x));
  const Tensor* bias = find(layer_name(index, "exp_probs_b"));
  const Node ranked = bias != nullptr ? add(probabilities, *bias) : probabilities;
  const Node sorted = fresh(OpKind::elementwise, {ranked}, Layout::packed({n_expert, n, 1, 1}, kI32));
  const Node chosen = slice(sorted, used);
  Node weights = reshape(get_rows(reshape(probabilities, 1, n_expert, n), chosen), used, n);
  weights = reshape(div(weights, sum_rows(weights)), 1, used, n);
  const Node in = reshape(x, ne(x, 0), 1, n);
  const Node gate = map(mul_mat_id(gates, in, chosen));
  const Node activated = mul(gate, mul_mat_id(weight("ffn_up_exps"), in, chosen));
  return sum_of_experts(mul_mat_id(weight("ffn_down_exps"), activated, chosen), weights);
}

Node EncoderGraph::layer(int64_t index, Node x, int64_t n_positions, int64_t n_batch, const LayerStyle& style) {
  const auto name = [&](std::string_view part) { return layer_name(index, part); };
  Node current = norm(name("ln1"), x, style.norm);
  Node q = kNoValue;
  Node k = kNoValue;
  Node v = kNoValue;
  const auto normed = [&](std::string_view part, Node y) { return has(name(part)) ? norm(name(part), y, style.norm) : y; };
  if (has(name("attn_qkv"))) {
    const Node all = linear(name("attn_qkv"), current);
    const int64_t head_dim = ne(all, 0) / (n_head_ + 2 * n_head_kv_);
    const int64_t head = head_dim * kActivationBytes;
    const int64_t row = layout(all).nb[1];
    const auto part = [&](int64_t n_head) { return view(all, {head_dim, n_head, n_positions, n_batch}, {head, row, row * n_positions}); };
    q = part(n_head_);
    k = part(n_head_kv_);
    v = part(n_head_kv_);
    q = normed("attn_q_norm", q);
    k = normed("attn_k_norm", k);
  } else {
    q = linear(name("attn_q"), current);
    k = linear(name("attn_k"), current);
    v = linear(name("attn_v"), current);
    const Tensor* q_norm = find(name("attn_q_norm"));
    const bool by_head = q_norm != nullptr && q_norm->shape[0] == head_dim_;
    if (!by_head) {
      q = normed("attn_q_norm", q);
      k = normed("attn_k_norm", k);
    }
    q = heads(q, n_head_, n_positions, n_batch);
    k = heads(k, n_head_kv_, n_positions, n_batch);
    v = heads(v, n_head_kv_, n_positions, n_batch);
    if (by_head) {
      q = normed("attn_q_norm", q);
      k = normed("attn_k_norm", k);
    }
  }
  if (style.rotate) {
    q = style.rotate(q);
    k = style.rotate(k);
  }
  if (style.norms_values) v = rms(v);
  const Node mask = style.mask ? style.mask(index) : kNoValue;
  const Tensor* sinks = mask != kNoValue && !style.sinks.empty() ? &require(name(style.sinks)) : nullptr;
  current = attend(name("attn_out"), q, k, v, mask, sinks);
  if (style.reshapes_attention) current = GraphWriter::reshape(current, layout(x).ne);
  if (const Tensor* scale = find(name("ls1"))) current = mul(current, *scale);
  if (has(name("attn_post_norm"))) current = norm(name("attn_post_norm"), current, style.norm);
  x = add(current, x);
  if (style.attended) style.attended(index, x);
  current = norm(name("ln2"), x, style.norm);
  current = has(name("ffn_gate_exps")) ? layer_experts(index, current) : layer_ffn(index, current, style.activations);
  if (has(name("ffn_post_norm"))) current = norm(name("ffn_post_norm"), current, style.norm);
  if (const Tensor* scale = find(name("ls2"))) current = mul(current, *scale);
  x = add(x, current);
  if (const Tensor* scale = find(name("out_scale"))) x = mul(x, *scale);
  return x;
}

Node EncoderGraph::transformer(Node x, int64_t n_positions, const LayerStyle& style, const Operand& positions) {
  const int64_t n_batch = ne(x, 2);
  const std::string side = encoder_.is_of_sound ? "a." : "v.";
  if (positions.exists()) x = add(x, positions);
  x = reshape(x, n_embd_, n_positions * n_batch);
  if (has(side + "pre_ln")) x = norm(side + "pre_ln", x, style.norm);
  for (int64_t i = 0; i < n_layer_; ++i) x = layer(i, x, n_positions, n_batch, style);
  if (is("qwen2a") || is("voxtral") || is("musicflamingo")) {
    x = cont(transpose(x));
    x = fresh(OpKind::copy, {x}, Layout::packed({ne(x, 0) / 2, ne(x, 1), 1, 1}));
    x = cont(transpose(x));
  }
  const std::string post = style.post_norm.empty() ? side + "post_ln" : std::string(style.post_norm);
  if (has(post)) x = norm(post, x, style.norm);
  return reshape(x, n_embd_, ne(x, 1) / n_batch, n_batch);
}

Node EncoderGraph::merge_patches(Node x, int64_t merge) {
  const int64_t n = ne(x, 0);
  const int64_t width = aligned(columns(), merge);
  const int64_t height = aligned(rows(), merge);
  x = reshape(x, n, columns(), rows());
  if (width != columns() || height != rows()) x = pad(x, {0, width - columns(), height - rows(), 0});
  x = permute(reshape(x, n * merge, width / merge, height), {0, 2, 1, 3});
  x = permute(cont(x, {n * merge * merge, height / merge, width / merge, 1}), {0, 2, 1, 3});
  return cont(x, {ne(x, 0), ne(x, 1) * ne(x, 2), 1, 1});
}

Node EncoderGraph::stack(Node x, int64_t factor) {
  if (factor <= 1) return x;
  const int64_t total = layout(x).n_elements();
  const int64_t stride = n_embd_ * factor;
  const int64_t padded = aligned(total, stride);
  if (padded != total) x = pad(reshape(x, total, 1), {padded - total, 0, 0, 0});
  return reshape(x, stride, padded / stride);
}

std::function<Node(Node)> EncoderGraph::rotation(Node positions) {
  return [this, positions](Node x) { return element_wise({x, positions}, packed_like(x)); };
}

std::function<Node(Node)> EncoderGraph::rotation_2d(Node first, Node second) {
  return [this, first, second](Node x) { return rotation(second)(rotation(first)(x)); };
}

}  // namespace pshard
