// Encoders of images whose patches come in groups of 2 x 2, which become one: Qwen-VL and its like. Facts are those of llama.cpp's
// tools/mtmd/models (0c1e57098).
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

// Windows of attention, which some layers see: a mask over all pairs, and patches ordered by window.
struct Windows {
  Node mask = kNoValue;
  Node order = kNoValue;
};
Windows windows(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  Windows made{.mask = g.floats({n, n, 1, 1}), .order = g.indices(n / 4)};
  if (g.flash_attn()) made.mask = g.cast(made.mask, kF16);
  return made;
}

Node reordered(EncoderGraph& g, Node x, Node order, int64_t n_embd, int64_t group) {
  const Node rows = g.get_rows(g.reshape(x, n_embd * group, g.ne(x, 1) / group), order);
  return g.reshape(rows, n_embd, g.ne(rows, 1) * group);
}

Node merge_by_four(EncoderGraph& g, Node x) { return g.ffn("mm.0", "mm.2", g.reshape(x, g.n_embd() * 4, g.n_patches() / 4)); }

// Qwen2-VL, Qwen2.5-VL and EXAONE 4.5, with windows or without.
Node qwen2vl(EncoderGraph& g) {
  const int64_t pattern = g.number("n_wa_pattern", 0);
  const NormKind kind = g.is("qwen2vl_merger") ? NormKind::layer : NormKind::rms;
  const int64_t n = g.n_patches();
  LayerStyle style{.norm = kind, .rotate = g.rotation(g.indices(4 * n))};
  Node x = g.grouped_patches();
  if (g.has("v.pre_ln")) x = g.norm("v.pre_ln", x, kind);
  if (pattern > 0) {
    const Windows local = windows(g);
    x = reordered(g, x, local.order, g.n_embd(), 4);
    style.mask = [pattern, local](int64_t layer) { return (layer + 1) % pattern == 0 ? kNoValue : local.mask; };
  }
  for (int64_t i = 0; i < g.n_layer(); ++i) x = g.layer(i, x, n, 1, style);
  if (g.has("v.post_ln")) x = g.norm("v.post_ln", x, kind);
  x = merge_by_four(g, x);
  if (pattern == 0) return x;
  return reordered(g, x, g.indices(n / 4), g.ne(x, 0), 1);
}

Node qwen3vl_patches(EncoderGraph& g) {
  const Node x = g.grouped_patches();
  const Tensor* bias = g.find_bias("v.patch_embd");
  return bias != nullptr ? g.add(x, *bias) : x;
}

Node qwen3vl(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  const int64_t merged = g.merge(2) * g.merge(2);
  const LayerStyle style{.rotate = g.rotation(g.indices(4 * n))};
  Node x = qwen3vl_patches(g);
  x = g.add(x, g.grouped(g.position_table(), 2));
  if (g.has("v.pre_ln")) x = g.norm("v.pre_ln", x, style.norm);
  Node features = kNoValue;
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    x = g.layer(i, x, n, 1, style);
    const std::string deep = "v.deepstack." + std::to_string(i) + ".";
    if (!g.has(deep + "fc1")) continue;
    Node part = g.norm(deep + "norm", g.reshape(x, g.n_embd() * merged, n / merged), style.norm);
    part = g.ffn(deep + "fc1", deep + "fc2", part);
    features = features == kNoValue ? part : g.concat(features, part, 0);
  }
  if (g.has("v.post_ln")) x = g.norm("v.post_ln", x, style.norm);
  x = merge_by_four(g, x);
  return features == kNoValue ? x : g.concat(x, features, 0);
}

Node ling3vl(EncoderGraph& g) {
  const LayerStyle style{.rotate = g.rotation(g.indices(4 * g.n_patches()))};
  const Node image = qwen3vl_patches(g);
  const Node x = g.transformer(image, g.n_patches(), style, g.grouped(g.position_table(), 2));
  return merge_by_four(g, g.norm("mm.input_norm", x, style.norm));
}

// Layers see rows or columns of windows, or everything.
Node mimovl(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  const int64_t merge = g.merge(2);
  const int64_t unit = merge * merge;
  const std::vector<int64_t> modes = g.numbers("wa_pattern_mode");
  Node x = g.grouped_patches();
  const Node by_row = g.indices(4 * n);
  const Node by_column = g.indices(4 * n);
  const Node order = g.floats({n / unit, 1, 1, 1});
  const Node to_columns = g.cast(order, kI32);
  const Node to_rows = g.fresh(OpKind::elementwise, {order}, Layout::packed({n / unit, 1, 1, 1}, kI32));
  Node mask = g.floats({n, n, 1, 1});
  if (g.flash_attn()) mask = g.cast(mask, kF16);
  int64_t before = -1;
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    const int64_t mode = static_cast<size_t>(i) < modes.size() ? modes[static_cast<size_t>(i)] : -1;
    if ((mode == 1) != (before == 1)) x = reordered(g, x, mode == 1 ? to_columns : to_rows, g.n_embd(), unit);
    const LayerStyle style{.norm = NormKind::rms,
                           .rotate = g.rotation(mode == 1 ? by_column : by_row),
                           .mask = [mode, mask](int64_t) { return mode == -1 ? kNoValue : mask; },
                           .sinks = "attn_sinks"};
    x = g.layer(i, x, n, 1, style);
    before = mode;
  }
  if (before == 1) x = reordered(g, x, to_rows, g.n_embd(), unit);
  x = g.norm("v.post_ln", x, NormKind::layer);
  return g.ffn("mm.0", "mm.2", g.reshape(x, g.n_embd() * unit, n / unit));
}

Node glm4v(EncoderGraph& g) {
  const LayerStyle style{.norm = NormKind::rms, .rotate = g.rotation(g.indices(4 * g.n_patches()))};
  Node x = qwen3vl_patches(g);
  if (g.has("v.norm_embd")) x = g.norm("v.norm_embd", x, style.norm);
  Operand positions;
  if (g.has("v.position_embd")) positions = g.grouped(g.position_table(), 2);
  x = g.transformer(x, g.n_patches(), style, positions);
  const int64_t merge = g.merge(2);
  const int64_t n = g.n_patches() / (merge * merge);
  x = g.cont(g.permute(g.reshape(x, g.n_embd(), merge, merge, n), {2, 0, 1, 3}));
  x = g.conv_2d("mm.patch_merger", x, merge, 0);
  x = g.add(g.reshape(x, g.ne(x, 2), n), *g.find_bias("mm.patch_merger"));
  x = g.map(g.norm("mm.post_norm", g.linear("mm.model.fc", x), NormKind::layer));
  return g.ffn("mm.up", "mm.down", x, 1, "mm.gate");
}

Node minimax_m3(EncoderGraph& g) {
  const int64_t merge = g.merge(2);
  const int64_t n = g.n_patches();
  Node x = g.grouped_patches(merge);
  const Node down = g.indices(n);
  x = g.transformer(x, n, {.rotate = g.rotation_2d(down, g.indices(n))});
  x = g.ffn("mm.1", "mm.2", x);
  x = g.reshape(x, g.ne(x, 0) * merge * merge, n / (merge * merge));
  return g.ffn("mm.merger.fc1", "mm.merger.fc2", x);
}

// Pixels are brought into groups of 2 x 2 patches before they are projected.
Node youtuvl(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  const int64_t side = g.patch();
  const int64_t across = g.columns() / 2;
  const int64_t down = g.rows() / 2;
  Node x = g.reshape(g.raw(), across * 2 * side, 2 * side, down, 3);
  x = g.cont(g.permute(x, {1, 2, 3, 0}), {2 * side * 3, across, 2 * side, down});
  x = g.cont(g.permute(x, {0, 2, 1, 3}), {2 * side * 3, side, 2, down * across});
  x = g.cont(g.permute(x, {1, 0, 2, 3}), {side, 3, side, down * across * 4});
  x = g.cont(g.permute(x, {2, 0, 1, 3}), {3 * side * side, down * across * 4, 1, 1});
  x = g.reshape(g.linear("v.patch_embd", x), g.n_embd(), n);
  LayerStyle style{.rotate = g.rotation(g.indices(4 * n))};
  if (g.has("v.pre_ln")) x = g.norm("v.pre_ln", x, style.norm);
  const std::vector<int64_t> full = g.numbers("wa_layer_indexes");
  if (!full.empty()) {
    const Windows local = windows(g);
    x = reordered(g, x, local.order, g.n_embd(), 4);
    style.mask = [full, local](int64_t layer) { return std::find(full.begin(), full.end(), layer) != full.end() ? kNoValue : local.mask; };
  }
  for (int64_t i = 0; i < g.n_layer(); ++i) x = g.layer(i, x, n, 1, style);
  if (!full.empty()) x = reordered(g, x, g.indices(n / 4), g.n_embd(), 4);
  if (g.has("v.post_ln")) x = g.norm("v.post_ln", x, style.norm);
  x = g.norm("mm.input_norm", x, NormKind::rms);
  return merge_by_four(g, x);
}

constexpr std::array<EncoderKind, 10> kKinds{{
    {"qwen2vl_merger", qwen2vl},
    {"qwen2.5vl_merger", qwen2vl},
    {"exaone4_5", qwen2vl},
    {"qwen3vl_merger", qwen3vl},
    {"ling3vl", ling3vl},
    {"mimovl", mimovl},
    {"glm4v", glm4v},
    {"glm5v", glm4v},
    {"minimax_m3", minimax_m3},
    {"youtuvl", youtuvl},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_grouped_images() { return kKinds; }

}  // namespace pshard
