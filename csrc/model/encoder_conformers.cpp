// Encoders of sound whose layers are conformers: half an FFN, attention with relative positions, a convolution over time, and the other
// half. Facts are those of llama.cpp's tools/mtmd/models (0c1e57098).
#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "model/encoder_kinds.hpp"
#include "model/encoder_queries.hpp"

namespace pshard {

namespace {

Node by_frequency(EncoderGraph& g) { return g.cont(g.transpose(g.raw(1))); }

// Half of an FFN's result is added to what it started from.
Node half_ffn(EncoderGraph& g, const std::string& layer, std::string_view suffix, Node x, NormKind kind) {
  const auto name = [&](std::string_view part) { return layer + std::string(part) + std::string(suffix); };
  Node out = g.norm(name("ffn_norm"), x, kind);
  out = g.ffn(name("ffn_up"), name("ffn_down"), out);
  if (kind == NormKind::rms && g.has(name("ffn_post_norm"))) out = g.norm(name("ffn_post_norm"), out, kind);
  return g.add(x, g.map(out));
}

// Both halves of x, one of them through a sigmoid, multiplied. CUDA has none for rows with gaps.
Node gated_halves(EncoderGraph& g, Node x, bool packs_gate) {
  const int64_t n = g.ne(x, 0) / 2;
  const int64_t row = g.layout(x).nb[1];
  const auto half = [&] { return g.view(x, {n, g.ne(x, 1), 1, 1}, {row, row * g.ne(x, 1), row * g.ne(x, 1)}); };
  const Node second = half();
  const Node gate = g.map(packs_gate ? g.cont(second) : second);
  g.operation(gate).host_only = !packs_gate;
  return g.cont(g.transpose(g.mul(half(), gate)));
}

// A convolution over time, by channel: x[steps, channels] with all that its kernel reaches.
Node over_time(EncoderGraph& g, std::string_view name, Node x) {
  const Tensor& kernel = g.require(name);
  const Node out = g.fresh(OpKind::scan, {x, kWeight}, Layout::packed({kernel.shape[1], g.ne(x, 0) - kernel.shape[0] + 1, 1, 1}), &kernel);
  g.operation(out).host_only = kernel.shape[1] % 128 != 0;
  return out;
}

Node heads_of(EncoderGraph& g, std::string_view name, Node x, int64_t n_head) {
  const Node out = g.linear(name, x);
  return g.reshape(out, g.ne(out, 0) / n_head, n_head, g.ne(out, 1));
}

// Scores by relative distance as scores by position: every row moves by one more.
Node shifted(EncoderGraph& g, Node x, int64_t n_keys) {
  const int64_t n = g.ne(x, 0);
  const int64_t n_queries = g.ne(x, 1);
  const int64_t n_head = g.ne(x, 2);
  x = g.reshape(g.pad(x, {1, 0, 0, 0}), n_queries, n + 1, n_head);
  const auto cut = [&](Node from, int64_t n0, int64_t n1) {
    const Layout& whole = g.layout(from);
    return g.view(from, {n0, n1, n_head, 1}, {whole.nb[1], whole.nb[2], whole.nb[2] * n_head});
  };
  x = g.cont(cut(x, n_queries, n), {n, n_queries, n_head, 1});
  return cut(x, n_keys, n_queries);
}

Node lfm2a_attention(EncoderGraph& g, const std::string& layer, Node x, Node distances) {
  const int64_t n_head = g.number("attention.head_count");
  const Node q = heads_of(g, layer + "attn_q", x, n_head);
  const auto biased = [&](std::string_view bias) { return g.permute(g.add(q, g.require(layer + std::string(bias))), {0, 2, 1, 3}); };
  const Node by_content = biased("pos_bias_u");
  const Node by_distance = biased("pos_bias_v");
  const Node k = g.cont(g.permute(heads_of(g, layer + "attn_k", x, n_head), {0, 2, 1, 3}));
  const Node v = g.cont(g.permute(heads_of(g, layer + "attn_v", x, n_head), {1, 2, 0, 3}));
  const Node contents = g.cont(g.transpose(g.mul_mat(by_content, k)));
  const Node places = g.permute(heads_of(g, layer + "linear_pos", distances, n_head), {0, 2, 1, 3});
  const Node far = shifted(g, g.cont(g.transpose(g.mul_mat(by_distance, places))), g.ne(contents, 0));
  const Node weights = g.map(g.map(g.add(contents, far)));
  const Node out = g.permute(g.mul_mat(weights, v), {2, 0, 1, 3});
  return g.linear(layer + "attn_out", g.cont(out, {g.ne(out, 0) * g.ne(out, 1), g.ne(out, 2), 1, 1}));
}

Node lfm2a(EncoderGraph& g) {
  const auto halved = [](int64_t n) { return (n + 1) / 2; };
  const Node distances = g.floats({512, halved(halved(halved(g.width()))) * 2 - 1, 1, 1});
  const auto biased = [&](std::string_view name, Node x) { return g.add(x, *g.find_bias(name)); };
  Node x = g.in_place(biased("a.conv1d.0", g.conv_2d("a.conv1d.0", by_frequency(g), 2, 1)));
  for (const auto& [by_channel, across] : {std::pair{"a.conv1d.2", "a.conv1d.3"}, std::pair{"a.conv1d.5", "a.conv1d.6"}}) {
    x = biased(by_channel, g.conv_2d_by_channel_direct(by_channel, x, 2, 1));
    x = g.in_place(biased(across, g.conv_2d_direct(across, x, 1, 0)));
  }
  x = g.cont(g.permute(x, {0, 2, 1, 3}));
  x = g.linear("a.pre_encode.out", g.reshape(x, g.ne(x, 0) * g.ne(x, 1), g.ne(x, 2)));
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    const std::string layer = g.layer_name(i, "");
    x = half_ffn(g, layer, "", x, NormKind::layer);
    x = g.add(x, lfm2a_attention(g, layer, g.norm(layer + "ln1", x, NormKind::layer), distances));
    Node moved = g.linear(layer + "conv_pw1", g.norm(layer + "norm_conv", x, NormKind::layer));
    moved = g.pad(gated_halves(g, moved, false), {4, 0, 0, 0});
    moved = g.pad(g.cont(moved), {4, 0, 0, 0});  // the row, turned round by four
    moved = g.add(over_time(g, layer + "conv_dw", moved), *g.find_bias(layer + "conv_dw"));
    moved = g.add(g.mul(moved, g.require(layer + "conv_norm")), *g.find_bias(layer + "conv_norm"));
    x = g.add(x, g.linear(layer + "conv_pw2", g.map(moved)));
    x = g.norm(layer + "ln2", half_ffn(g, layer, "_1", x, NormKind::layer), NormKind::layer);
  }
  return g.ffn("mm.a.mlp.1", "mm.a.mlp.3", g.norm("mm.a.mlp.0", x, NormKind::layer));
}

// Attention of Gemma 4's conformers: chunks of frames see themselves and as much before them.
Node gemma4a_attention(EncoderGraph& g, const std::string& layer, Node x, Node distances, Node mask) {
  constexpr int64_t kChunk = 12;
  constexpr int64_t kSeen = 24;
  constexpr int64_t kDistances = 13;
  const int64_t n_head = g.number("attention.head_count");
  const int64_t n = g.ne(x, 1);
  const int64_t n_chunks = (n + kChunk - 1) / kChunk;
  const Node queries = g.linear(layer + "attn_q", x);
  const Node keys = g.linear(layer + "attn_k", x);
  const Node values = g.linear(layer + "attn_v", x);
  const int64_t head = g.ne(queries, 0) / n_head;
  const auto by_head = [&](Node y) { return g.reshape(y, head, n_head, n); };
  const auto scaled = [&](Node y, std::string_view scale) {
    y = g.map(y);
    const Tensor* weight = g.find(layer + std::string(scale));
    return weight != nullptr ? g.mul(y, *weight) : y;
  };
  Node q = scaled(by_head(queries), "per_dim_scale");
  const Node k = scaled(by_head(keys), "per_dim_k_scale");
  q = g.reshape(g.pad(q, {0, 0, n_chunks * kChunk - n, 0}), head, n_head, kChunk, n_chunks);
  q = g.cont(g.permute(q, {0, 3, 1, 2}));
  const auto seen = [&](Node y) {
    y = g.pad(y, {0, 0, kSeen * n_chunks - n, 0});
    const int64_t step = g.layout(y).nb[2];
    return g.cont(g.view(y, {head, n_head, kSeen, n_chunks}, {g.layout(y).nb[1], step, kChunk * step}));
  };
  const Node k_seen = g.cont(g.permute(seen(k), {0, 3, 1, 2}));
  const Node v_seen = g.cont(g.permute(seen(by_head(values)), {1, 3, 0, 2}));
  Node scores = g.mul_mat(k_seen, q);
  if (const Tensor* projection = g.find(layer + "attn_k_rel")) {
    const Node places = g.cont(g.permute(g.reshape(g.mul_mat(*projection, distances), head, n_head, kDistances), {0, 2, 1, 3}));
    Node far = g.mul_mat(places, g.reshape(q, head, kChunk * n_chunks, n_head));
    far = g.pad(g.reshape(far, kDistances, kChunk, n_chunks, n_head), {kSeen + 1 - kDistances, 0, 0, 0});
    far = g.reshape(far, (kSeen + 1) * kChunk, n_chunks, n_head);
    const Layout& whole = g.layout(far);
    far = g.cont(g.view(far, {kChunk * kSeen, n_chunks, n_head, 1}, {whole.nb[1], whole.nb[2], whole.nb[2] * n_head}));
    scores = g.add(scores, g.reshape(far, kSeen, kChunk, n_chunks, n_head));
  }
  for (int i = 0; i < 3; ++i) scores = g.map(scores);
  const Node weights = g.map(g.add(scores, mask));
  Node out = g.cont(g.permute(g.mul_mat(v_seen, weights), {0, 2, 3, 1}));
  out = g.cont(out, {head * n_head, kChunk * n_chunks, 1, 1});
  if (n_chunks * kChunk > n) {
    const int64_t row = g.layout(out).nb[1];
    out = g.cont(g.view(out, {head * n_head, n, 1, 1}, {row, row * n, row * n}));
  }
  out = g.linear(layer + "attn_out", out);
  return g.has(layer + "attn_post_norm") ? g.norm(layer + "attn_post_norm", out, NormKind::rms) : out;
}

Node gemma4a(EncoderGraph& g) {
  Node x = by_frequency(g);
  for (const std::string name : {"a.conv1d.0", "a.conv1d.1"}) {
    x = g.conv_2d(name, x, 2, 1);
    if (const Tensor* bias = g.find_bias(name)) x = g.add(x, *bias);
    if (g.has(name + ".norm")) {
      x = g.norm(name + ".norm", g.cont(g.permute(x, {1, 2, 0, 3})), NormKind::layer);
      x = g.cont(g.permute(x, {2, 0, 1, 3}));
    }
    x = g.map(x);
  }
  g.clamp_products();
  x = g.cont(g.permute(x, {1, 2, 0, 3}));
  x = g.linear("a.input_projection", g.reshape(x, g.ne(x, 0) * g.ne(x, 1), g.ne(x, 2)));
  const Node distances = g.floats({g.n_embd(), 13, 1, 1});
  const Node mask = g.floats({24, 12, (g.ne(x, 1) + 11) / 12, 1});
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    const std::string layer = g.layer_name(i, "");
    x = half_ffn(g, layer, "", x, NormKind::rms);
    const std::string first = layer + (g.has(layer + "attn_pre_norm") ? "attn_pre_norm" : "ln1");
    x = g.add(x, gemma4a_attention(g, layer, g.has(first) ? g.norm(first, x, NormKind::rms) : x, distances, mask));
    if (g.has(layer + "conv_norm")) {
      Node moved = g.linear(layer + "conv_pw1", g.norm(layer + "conv_norm", x, NormKind::rms));
      moved = over_time(g, layer + "conv_dw", g.pad(gated_halves(g, moved, true), {4, 0, 0, 0}));
      if (const Tensor* bias = g.find_bias(layer + "conv_dw")) moved = g.add(moved, *bias);
      if (g.has(layer + "norm_conv")) moved = g.norm(layer + "norm_conv", moved, NormKind::rms);
      x = g.add(x, g.linear(layer + "conv_pw2", g.map(moved)));
    }
    x = half_ffn(g, layer, "_1", x, NormKind::rms);
    if (g.has(layer + "ln2")) x = g.norm(layer + "ln2", x, NormKind::rms);
  }
  if (g.has("a.pre_encode.out")) x = g.linear("a.pre_encode.out", x);
  x = g.rms(x);
  if (const Tensor* scale = g.find("mm.a.soft_emb_norm")) x = g.mul(x, *scale);
  return g.has("mm.a.input_projection") ? g.linear("mm.a.input_projection", x) : x;
}

// Attention within chunks of frames; distances within one are looked up.
Node granite_attention(EncoderGraph& g, const std::string& layer, Node x, int64_t chunk, Node distances, Node mask) {
  const int64_t n = g.width();
  const int64_t n_head = g.number("attention.head_count");
  const int64_t head = g.n_embd() / n_head;
  const int64_t n_chunks = (n + chunk - 1) / chunk;
  if (n_chunks * chunk > n) x = g.pad(x, {0, n_chunks * chunk - n, 0, 0});
  const auto chunks = [&](std::string_view name) {
    return g.reshape(g.linear(layer + std::string(name), x), head, n_head, chunk, n_chunks);
  };
  const Node q = chunks("attn_q");
  const Node k = g.cont(g.permute(chunks("attn_k"), {0, 2, 1, 3}));
  const Node values = chunks("attn_v");
  const Node by_content = g.mul_mat(k, g.permute(q, {0, 2, 1, 3}));
  const Node places = g.reshape(g.look_up(g.require(layer + "attn_rel_pos_emb"), distances), head, chunk, 1, chunk);
  const Node by_distance = g.cont(g.permute(g.mul_mat(places, g.permute(q, {0, 1, 3, 2})), {0, 2, 3, 1}));
  const Node scores = g.add(by_content, by_distance);
  const Node weights = g.element_wise({scores, mask}, g.layout(scores));
  Node out = g.permute(g.mul_mat(g.cont(g.permute(values, {1, 2, 0, 3})), weights), {0, 2, 1, 3});
  out = g.cont(out, {g.n_embd(), n_chunks * chunk, 1, 1});
  const int64_t row = g.layout(out).nb[1];
  if (n_chunks * chunk > n) out = g.view(out, {g.n_embd(), n, 1, 1}, {row, row * n, row * n});
  return g.linear(layer + "attn_out", out);
}

Node granite_speech(EncoderGraph& g) {
  const int64_t n = g.width();
  const int64_t chunk = g.number("chunk_size");
  const std::vector<int64_t> features = g.numbers("feature_layer");
  const auto is_feature = [&](int64_t layer) { return std::find(features.begin(), features.end(), layer) != features.end(); };
  const Node distances = g.indices(chunk * chunk);
  const Node mask = n % chunk > 0 ? g.floats({chunk, chunk, 1, (n + chunk - 1) / chunk}) : kNoValue;
  Node x = g.linear("a.input_projection", by_frequency(g));
  Node stacked = is_feature(0) ? x : kNoValue;
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    const std::string layer = g.layer_name(i, "");
    x = half_ffn(g, layer, "", x, NormKind::layer);
    x = g.add(x, granite_attention(g, layer, g.norm(layer + "ln1", x, NormKind::layer), chunk, distances, mask));
    Node moved = g.linear(layer + "conv_pw1", g.norm(layer + "norm_conv", x, NormKind::layer));
    const int64_t reach = g.number("conv_kernel_size") / 2;
    moved = over_time(g, layer + "conv_dw", g.pad(gated_halves(g, moved, false), {2 * reach, 0, 0, 0}));
    moved = g.add(g.mul(moved, g.require(layer + "conv_norm")), *g.find_bias(layer + "conv_norm"));
    x = g.add(x, g.linear(layer + "conv_pw2", g.map(moved)));
    x = g.norm(layer + "ln2", half_ffn(g, layer, "_1", x, NormKind::layer), NormKind::layer);
    if (is_feature(i + 1)) stacked = stacked == kNoValue ? x : g.concat(stacked, x, 0);
    if (i + 1 == g.n_layer() / 2) x = g.add(x, g.linear("a.enc_ctc_out_mid", g.map(g.linear("a.enc_ctc_out", x))));
  }
  if (stacked != kNoValue) x = g.concat(stacked, x, 0);
  const int64_t window = g.number("projector.window_size");
  const int64_t n_queries = window / g.number("projector.downsample_rate");
  const int64_t n_windows = (n + window - 1) / window;
  if (n_windows * window > n) x = g.pad(x, {0, n_windows * window - n, 0, 0});
  const Node seen = g.reshape(x, g.ne(x, 0), window, n_windows);
  const Tensor& learned = g.require("a.proj_query");
  Node queries = g.fresh(OpKind::elementwise, {kWeight}, Layout::packed({learned.shape[0], learned.shape[1], 1, 1}), &learned);
  queries = g.add(g.mul(queries, g.require("a.proj_norm")), *g.find_bias("a.proj_norm"));
  queries = g.repeat(g.reshape(queries, g.n_embd(), n_queries), {g.n_embd(), n_queries, n_windows, 1});
  for (int64_t i = 0; i < 2; ++i) {
    queries = query_former(g, "a.proj_blk." + std::to_string(i) + ".", queries, seen, g.number("projector.head_count"));
  }
  return g.linear("a.proj_linear", g.reshape(queries, g.n_embd(), n_queries * n_windows));
}

// Distances as waves: sines and cosines side by side.
Node parakeet_distances(EncoderGraph& g, int64_t n) {
  const int64_t half = g.n_embd() / 2;
  const Node frequencies = g.floats({half, 1, 1, 1});
  const Node angles = g.mul(g.repeat(frequencies, {half, n, 1, 1}), g.floats({1, n, 1, 1}));
  const auto wave = [&] { return g.reshape(g.fresh(OpKind::elementwise, {angles}, g.layout(angles)), 1, half, n); };
  const Node sines = wave();
  return g.reshape(g.cont(g.concat(sines, wave(), 0)), 2 * half, n);
}

Node parakeet_attention(EncoderGraph& g, const std::string& layer, Node x, Node distances, Node mask) {
  const int64_t n_head = g.number("attention.head_count");
  const int64_t n = g.ne(x, 1);
  const Node q = heads_of(g, layer + "attn_q", x, n_head);
  const Node k = g.permute(heads_of(g, layer + "attn_k", x, n_head), {0, 2, 1, 3});
  const Node values = heads_of(g, layer + "attn_v", x, n_head);
  const Node places = g.cont(g.permute(heads_of(g, layer + "linear_pos", distances, n_head), {0, 2, 1, 3}));
  const Node contents = g.mul_mat(k, g.permute(g.add(q, g.require(layer + "pos_bias_u")), {0, 2, 1, 3}));
  Node far = g.mul_mat(places, g.cont(g.permute(g.add(q, g.require(layer + "pos_bias_v")), {0, 2, 1, 3})));
  const int64_t n_distances = g.ne(far, 0);
  const auto cut = [&](int64_t n0, int64_t n1, int64_t row) {
    const int64_t plane = g.layout(far).nb[2];
    return g.cont(g.view(far, {n0, n1, n_head, 1}, {row, plane, plane * n_head}));
  };
  far = g.cont(g.reshape(g.pad(far, {1, 0, 0, 0}), n, n_distances + 1, n_head));
  far = cut(n, n_distances, n_distances * kActivationBytes);
  far = cut(n, n, g.layout(far).nb[1]);
  const Node scores = g.add(g.map(g.add(contents, far)), mask);
  const Node out = g.permute(g.mul_mat(g.map(scores), g.cont(g.permute(values, {1, 2, 0, 3}))), {2, 0, 1, 3});
  return g.linear(layer + "attn_out", g.cont(out, {g.n_embd(), n, 1, 1}));
}

// Up to 8192 positions, about eleven minutes; beyond, attention has a window.
Node parakeet(EncoderGraph& g) {
  const auto biased = [&](std::string_view name, Node x) { return g.add(x, *g.find_bias(name)); };
  Node x = g.map(biased("a.conv1d.0", g.conv_2d("a.conv1d.0", by_frequency(g), 2, 1)));
  for (const auto& [by_channel, across] : {std::pair{"a.conv1d.2", "a.conv1d.3"}, std::pair{"a.conv1d.5", "a.conv1d.6"}}) {
    x = biased(by_channel, g.conv_2d_by_channel_direct(by_channel, x, 2, 1));
    x = g.map(biased(across, g.conv_2d(across, x, 1, 0)));
  }
  x = g.cont(g.permute(x, {0, 2, 1, 3}));
  x = g.linear("a.pre_encode.out", g.reshape(x, g.ne(x, 0) * g.ne(x, 1), g.ne(x, 2)));
  const int64_t n = g.ne(x, 1);
  const Node mask = g.floats({n, n, 1, 1});
  const Node distances = parakeet_distances(g, 2 * n - 1);
  const int64_t reach = (g.number("conv_kernel_size") - 1) / 2;
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    const std::string layer = g.layer_name(i, "");
    x = half_ffn(g, layer, "", x, NormKind::layer);
    x = g.add(x, parakeet_attention(g, layer, g.norm(layer + "ln1", x, NormKind::layer), distances, mask));
    Node moved = g.linear(layer + "conv_pw1", g.norm(layer + "norm_conv", x, NormKind::layer));
    moved = over_time(g, layer + "conv_dw", g.pad(gated_halves(g, moved, false), {2 * reach, 0, 0, 0}));
    moved = g.add(moved, g.require(layer + "conv_norm_mean"));
    const Tensor& variance = g.require(layer + "conv_norm_var");
    moved = g.div(moved, g.fresh(OpKind::elementwise, {kWeight}, Layout::packed(variance.shape), &variance));
    moved = g.add(g.mul(moved, g.require(layer + "conv_norm")), *g.find_bias(layer + "conv_norm"));
    x = g.add(x, g.linear(layer + "conv_pw2", g.map(moved)));
    x = g.norm(layer + "ln2", half_ffn(g, layer, "_1", x, NormKind::layer), NormKind::layer);
  }
  x = g.mul(g.rms(x), g.require("mm.a.norm_pre"));
  return g.ffn("mm.a.mlp.1", "mm.a.mlp.2", x, 2);
}

constexpr std::array<EncoderKind, 4> kKinds{{
    {"lfm2a", lfm2a},
    {"gemma4a", gemma4a},
    {"granite_speech", granite_speech},
    {"parakeet", parakeet},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_conformers() { return kKinds; }

}  // namespace pshard
