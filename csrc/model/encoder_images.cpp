// Encoders of images that learn their patches' positions from a table. Facts are those of llama.cpp's tools/mtmd/models (0c1e57098).
#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

// SigLIP and its like.
Node siglip(EncoderGraph& g) {
  Operand positions = g.require("v.position_embd");
  const Node image = g.patches();
  if (g.is("lfm2") || g.is("phi4")) positions = g.position_table();
  return g.transformer(image, g.n_patches(), {}, positions);
}

Node gemma3(EncoderGraph& g) {
  const Node pooled = g.pool_2d(g.as_image(siglip(g)), g.number("projector.scale_factor", 4), g.number("projector.scale_factor", 4));
  Node out = g.rms(g.as_rows(pooled));
  out = g.mul(out, g.require("mm.soft_emb_norm"));
  const Tensor& projection = g.require("mm.input_projection");
  return g.mul_mat(g.cont(Operand(projection), {projection.shape[1], projection.shape[0], 1, 1}), out);
}

Node idefics3(EncoderGraph& g) { return g.linear("mm.model.fc", g.merge_patches(siglip(g), g.merge(1))); }

Node lfm2(EncoderGraph& g) {
  Node out = g.merge_patches(siglip(g), g.merge(1));
  if (g.has("mm.input_norm")) out = g.norm("mm.input_norm", out, NormKind::layer);
  return g.ffn("mm.1", "mm.2", out);
}

Node janus_pro(EncoderGraph& g) { return g.ffn("mm.0", "mm.1", siglip(g)); }

Node phi4(EncoderGraph& g) { return g.ffn("mm.0", "mm.2", siglip(g)); }

// LLaVA's encoder ends before its last layer, or with the last one that the projection reads.
Node llava_encoder(EncoderGraph& g) {
  const Tensor* class_token = g.find("v.class_embd");
  const int64_t n_positions = g.n_patches() + (class_token != nullptr ? 1 : 0);
  const std::vector<int64_t> features = g.numbers("feature_layer");
  const auto is_feature = [&](int64_t layer) { return std::find(features.begin(), features.end(), layer) != features.end(); };
  const int64_t last = features.empty() ? g.n_layer() - (g.is("adapter") ? 0 : 1) : *std::max_element(features.begin(), features.end());
  Node x = g.patches();
  if (class_token != nullptr) x = g.concat(x, *class_token, 1);
  x = g.add(x, g.look_up(g.require("v.position_embd"), g.indices(n_positions)));
  if (g.has("v.pre_ln")) x = g.norm("v.pre_ln", x, NormKind::layer);
  std::vector<Node> stacked;
  for (int64_t i = 0; i < last; ++i) {
    if (is_feature(i)) stacked.push_back(x);
    x = g.layer(i, x, n_positions, 1, {});
  }
  if (g.has("v.post_ln")) x = g.norm("v.post_ln", x, NormKind::layer);
  if (is_feature(last)) stacked.push_back(x);
  if (stacked.empty()) return x;
  Node out = stacked.front();
  for (size_t i = 1; i < stacked.size(); ++i) out = g.concat(out, stacked[i], 0);
  return out;
}

// Its patches, without the class token.
Node llava_patches(EncoderGraph& g) {
  const Node x = llava_encoder(g);
  return g.get_rows(g.reshape(x, g.ne(x, 0), g.ne(x, 1)), g.indices(g.n_patches()));
}

Node mlp(EncoderGraph& g) {
  Node x = g.linear("mm.0", llava_patches(g));
  if (g.has("mm.3")) {
    x = g.map(g.norm("mm.1", x, NormKind::layer));
    return g.norm("mm.4", g.linear("mm.3", x), NormKind::layer);
  }
  x = g.map(x);
  return g.has("mm.2") ? g.linear("mm.2", x) : x;
}

constexpr int64_t kLdpSide = 24;  // MobileVLM's projections take images of so many patches

Node norm_of_channels(EncoderGraph& g, const std::string& name, Node x) {
  const Node rows = g.norm(name, g.cont(g.permute(x, {1, 2, 0, 3})), NormKind::layer);
  return g.cont(g.permute(rows, {2, 0, 1, 3}));
}

Node ldp_block(EncoderGraph& g, Node x, int block, int64_t stride) {
  const auto name = [&](std::string_view part) { return "mm.model.mb_block." + std::to_string(block) + ".block." + std::string(part); };
  x = g.conv_2d_by_channel(name("0.0"), x, stride, 1);
  const Node activated = g.map(norm_of_channels(g, name("0.1"), x));
  const Node mean = g.pool_2d(activated, g.ne(activated, 0), g.ne(activated, 1));
  Node scale = g.reshape(mean, g.ne(mean, 2), 1);
  scale = g.map(g.linear(name("1.fc1"), scale));
  scale = g.map(g.linear(name("1.fc2"), scale));
  x = g.mul(activated, g.reshape(scale, 1, 1, g.ne(scale, 0)));
  const int64_t columns = g.ne(x, 0);
  const int64_t rows = g.ne(x, 1);
  x = g.cont(g.permute(g.reshape(x, columns * rows, g.ne(x, 2)), {1, 0, 2, 3}));
  x = g.linear(name("2.0"), x);
  return g.norm(name("2.1"), g.reshape(x, g.ne(x, 0), columns, rows), NormKind::layer);
}

Node ldp(EncoderGraph& g) {
  Node x = g.map(g.linear("mm.model.mlp.1", llava_patches(g)));
  x = g.linear("mm.model.mlp.3", x);
  x = g.permute(x, {1, 0, 2, 3});
  x = g.cont(x, {kLdpSide, kLdpSide, g.ne(x, 1), 1});
  const Node first = g.cont(g.permute(ldp_block(g, x, 1, 1), {2, 0, 1, 3}));
  const Node second = ldp_block(g, g.add(x, first), 2, 2);
  return g.reshape(second, g.ne(second, 0), g.ne(second, 1) * g.ne(second, 2));
}

Node ldpv2(EncoderGraph& g) {
  Node x = g.map(g.linear("mm.model.mlp.0", llava_patches(g)));
  x = g.permute(g.linear("mm.model.mlp.2", x), {1, 0, 2, 3});
  x = g.pool_2d(g.cont(x, {kLdpSide, kLdpSide, g.ne(x, 1), 1}), 2, 2);
  Node moved = g.cont(g.permute(g.conv_2d_by_channel("mm.model.peg.0", x, 1, 1), {1, 2, 0, 3}));
  moved = g.add(moved, *g.find_bias("mm.model.peg.0"));
  const Node sum = g.add(moved, g.cont(g.permute(x, {1, 2, 0, 3})));
  return g.reshape(sum, g.ne(sum, 0), g.ne(sum, 1) * g.ne(sum, 2));
}

Node glm_edge(EncoderGraph& g) {
  Node x = g.permute(llava_encoder(g), {1, 0, 2, 3});
  x = g.cont(x, {g.columns(), g.rows(), g.ne(x, 1), 1});
  x = g.conv_2d("adapter.conv", x, 2, 0);
  x = g.cont(g.permute(g.reshape(x, g.ne(x, 0) * g.ne(x, 1), g.ne(x, 2)), {1, 0, 2, 3}));
  x = g.add(x, *g.find_bias("adapter.conv"));
  x = g.norm("adapter.linear.norm1", g.linear("adapter.linear.linear", x), NormKind::layer);
  x = g.in_place(x);
  x = g.glu(g.linear("adapter.linear.gate", x), g.linear("adapter.linear.dense_h_to_4h", x));
  x = g.linear("adapter.linear.dense_4h_to_h", x);
  return g.concat(g.concat(g.require("adapter.boi"), x, 1), g.require("adapter.eoi"), 1);
}

Node internvl(EncoderGraph& g) {
  const NormKind kind = g.n_embd() == 3200 && g.n_layer() == 45 ? NormKind::rms : NormKind::layer;
  const Node image = g.patches();
  const Tensor& token = g.require("v.class_embd");
  const Node tokens = g.cont(Operand(token), {token.shape[0], 1, g.n_images(), 1});
  Node x = g.transformer(g.concat(image, tokens, 1), g.n_patches() + 1, {.norm = kind}, g.require("v.position_embd"));
  x = g.cont(g.view(x, {g.n_embd(), g.n_patches(), g.n_images(), 1}, {g.layout(x).nb[1], g.layout(x).nb[2], g.layout(x).nb[2]}));
  const int64_t merge = g.merge(1);
  x = g.permute(g.reshape(x, g.n_embd() * merge, g.rows() / merge, g.columns(), g.n_images()), {0, 2, 1, 3});
  x = g.permute(g.cont(x, {g.n_embd() * merge * merge, g.rows() / merge, g.columns() / merge, g.n_images()}), {0, 2, 1, 3});
  x = g.cont(x, {g.n_embd() * merge * merge, g.ne(x, 1) * g.ne(x, 2), g.n_images(), 1});
  return g.ffn("mm.model.mlp.1", "mm.model.mlp.3", g.norm("mm.model.mlp.0", x, NormKind::layer));
}

Node nemotron(EncoderGraph& g) {
  const Tensor& registers = g.require("v.class_embd");
  Node x = g.add(g.patches(), g.require("v.position_embd"));
  x = g.transformer(g.concat(registers, x, 1), g.n_patches() + registers.shape[1], {});
  const int64_t row = g.layout(x).nb[1];
  x = g.view(x, {g.n_embd(), g.n_patches(), 1, 1}, {row, row * g.n_patches(), row * g.n_patches()});
  x = g.norm("mm.model.mlp.0", g.merge_patches(x, g.merge(1)), NormKind::rms);
  return g.ffn("mm.model.mlp.1", "mm.model.mlp.3", x, 2);
}

// Four neighbours in one row.
struct Quarters {
  std::array<Node, 4> parts{};
  Node side_by_side = kNoValue;
};
Quarters quarters(EncoderGraph& g, Node x, int64_t n) {
  Quarters made;
  for (Node& part : made.parts) part = g.get_rows(x, g.indices(n));
  made.side_by_side = made.parts[0];
  for (size_t i = 1; i < made.parts.size(); ++i) made.side_by_side = g.concat(made.side_by_side, made.parts.at(i), 0);
  return made;
}

Node minicpmv4_6(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  const int64_t n_half = (g.rows() / 2) * (g.columns() / 2);
  const bool merges_twice = g.number("projector.scale_factor", 4) == 4;
  const Node chosen = g.look_up(g.require("v.position_embd"), g.indices(n));
  Node x = g.add(g.patches(), chosen);
  if (g.has("v.pre_ln")) x = g.norm("v.pre_ln", x, NormKind::layer);
  const std::vector<int64_t> merged_at = g.numbers("wa_layer_indexes");
  const int64_t inner = merges_twice ? (merged_at.empty() ? 0 : merged_at.front()) + 1 : g.n_layer();
  for (int64_t i = 0; i < inner; ++i) x = g.layer(i, x, n, 1, {});
  if (merges_twice) {
    const Node order = g.indices(n);
    const Node back = g.indices(n);
    Node mask = g.floats({n, n, 1, 1});
    if (g.flash_attn()) mask = g.cast(mask, kF16);
    const Node ordered = g.get_rows(g.norm("v.vit_merger.ln1", x, NormKind::layer), order);
    const int64_t n_head = g.number("attention.head_count");
    const auto heads = [&](std::string_view name) { return g.reshape(g.linear(name, ordered), g.n_embd() / n_head, n_head, n); };
    const Node q = heads("v.vit_merger.attn_q");
    const Node k = heads("v.vit_merger.attn_k");
    const Node v = heads("v.vit_merger.attn_v");
    x = g.add(g.get_rows(g.attend("v.vit_merger.attn_out", q, k, v, mask), back), x);
    const Quarters four = quarters(g, x, n_half);
    Node mean = four.parts[0];
    for (size_t i = 1; i < four.parts.size(); ++i) mean = g.add(mean, four.parts.at(i));
    mean = g.map(mean);
    const Node normed = g.norm("v.vit_merger.ds_ln", four.side_by_side, NormKind::layer);
    x = g.add(g.ffn("v.vit_merger.ds_ffn_up", "v.vit_merger.ds_ffn_down", normed), mean);
    for (int64_t i = inner; i < g.n_layer(); ++i) x = g.layer(i, x, n_half, 1, {});
  }
  if (g.has("v.post_ln")) x = g.norm("v.post_ln", x, NormKind::layer);
  const int64_t n_out = merges_twice ? (g.rows() / 4) * (g.columns() / 4) : n_half;
  return g.ffn("mm.up", "mm.down", g.norm("mm.input_norm", quarters(g, x, n_out).side_by_side, NormKind::layer));
}

Node hunyuanvl(EncoderGraph& g) {
  const int64_t merge = g.merge(2);
  const Node positions = g.floats({g.n_embd(), g.n_patches(), 1, 1});
  Node x = g.transformer(g.patches(), g.n_patches(), {}, positions);
  x = g.channels_first(g.norm("mm.pre_norm", x, NormKind::rms));
  x = g.map(g.add(g.conv_2d("mm.0", x, merge, 0), *g.find_bias("mm.0")));
  x = g.add(g.conv_2d("mm.2", x, 1, 0), *g.find_bias("mm.2"));
  const int64_t columns = g.columns() / merge;
  const int64_t rows = g.rows() / merge;
  const int64_t wide = g.ne(x, 2);
  x = g.concat(x, g.cont(Operand(g.require("v.image_newline")), {1, rows, wide, 1}), 0);
  x = g.cont(g.permute(x, {1, 2, 0, 3}), {wide, (columns + 1) * rows, 1, 1});
  x = g.linear("mm.model.fc", x);
  x = g.concat(g.concat(g.require("mm.image_begin"), x, 1), g.require("mm.image_end"), 1);
  return g.norm("mm.post_norm", x, NormKind::rms);
}

// Norms behind attention and FFN, not before them.
Node cogvlm(EncoderGraph& g) {
  const int64_t n = g.n_patches() + 1;
  const int64_t n_head = g.number("attention.head_count");
  const int64_t head = g.n_embd() / n_head;
  Node x = g.add(g.concat(g.patches(), g.require("v.class_embd"), 1), g.require("v.position_embd"));
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    const auto name = [&](std::string_view part) { return g.layer_name(i, part); };
    const Node all = g.linear(name("attn_qkv"), x);
    const int64_t row = g.layout(all).nb[1];
    const auto part = [&] { return g.view(all, {head, n_head, n, 1}, {head * kActivationBytes, row, row * n}); };
    const Node q = part();
    const Node k = part();
    const Node attended = g.attend(name("attn_out"), q, k, part());
    x = g.add(g.norm(name("ln1"), attended, NormKind::layer), x);
    const Node mixed = g.ffn(name("ffn_up"), name("ffn_down"), x, 1, name("ffn_gate"));
    x = g.add(g.norm(name("ln2"), mixed, NormKind::layer), x);
  }
  const int64_t row = g.layout(x).nb[1];
  x = g.view(x, {g.n_embd(), g.n_patches(), 1, 1}, {row, row * g.n_patches(), row * g.n_patches()});
  x = g.in_place(g.norm("mm.post_fc_norm", g.linear("mm.model.fc", x), NormKind::layer));
  const Node wide = g.linear("mm.up", x);
  x = g.linear("mm.down", g.glu(g.linear("mm.gate", x), wide));
  return g.concat(g.concat(g.require("v.boi"), x, 1), g.require("v.eoi"), 1);
}

constexpr std::array<EncoderKind, 14> kKinds{{
    {"gemma3", gemma3},
    {"idefics3", idefics3},
    {"lfm2", lfm2},
    {"janus_pro", janus_pro},
    {"phi4", phi4},
    {"mlp", mlp},
    {"ldp", ldp},
    {"ldpv2", ldpv2},
    {"adapter", glm_edge},
    {"internvl", internvl},
    {"nemotron_v2_vl", nemotron},
    {"minicpmv4_6", minicpmv4_6},
    {"hunyuanvl", hunyuanvl},
    {"cogvlm", cogvlm},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_images() { return kKinds; }

}  // namespace pshard
