// Encoders of sound. Facts are those of llama.cpp's tools/mtmd/models (0c1e57098).
#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

Node activated(EncoderGraph& g, std::string_view convolution, Node x) { return g.map(g.add(x, *g.find_bias(convolution))); }

// Two convolutions over time, of which the second halves it.
Node convolved_in_time(EncoderGraph& g) {
  Node x = g.raw(1);
  for (const auto& [name, stride] : {std::pair<std::string_view, int64_t>{"a.conv1d.1", 1}, {"a.conv1d.2", 2}}) {
    x = activated(g, name, g.conv_1d(name, x, stride, g.require(name).shape[0] / 2));
  }
  return x;
}

Node whisper(EncoderGraph& g) {
  return g.transformer(g.cont(g.transpose(convolved_in_time(g))), g.width() / 2, {}, g.require("a.position_embd"));
}

Node whisper_stacked(EncoderGraph& g) { return g.stack(whisper(g), g.number("projector.stack_factor")); }

Node ultravox(EncoderGraph& g) {
  Node x = g.linear("mm.a.mlp.1", g.norm("mm.a.norm_pre", whisper_stacked(g), NormKind::rms));
  x = g.norm("mm.a.norm_mid", g.glu(x, kNoValue), NormKind::rms);
  return g.linear("mm.a.mlp.2", x);
}

Node voxtral(EncoderGraph& g) { return g.ffn("mm.a.mlp.1", "mm.a.mlp.2", whisper_stacked(g)); }

Node music_flamingo(EncoderGraph& g) { return g.ffn("mm.a.mlp.1", "mm.a.mlp.2", whisper(g)); }

Node qwen2a(EncoderGraph& g) { return g.linear("mm.a.fc", whisper(g)); }

Node meralion(EncoderGraph& g) {
  Node x = g.norm("mm.a.norm_pre", whisper_stacked(g), NormKind::layer);
  x = g.map(g.linear("mm.a.mlp.0", x));
  const Node gate = g.map(g.linear("mm.a.mlp.1", x));
  return g.linear("mm.a.mlp.3", g.mul(gate, g.linear("mm.a.mlp.2", x)));
}

Node glma(EncoderGraph& g) {
  Node x = g.norm("mm.a.norm_pre", whisper(g), NormKind::layer);
  x = g.ffn("mm.a.mlp.1", "mm.a.mlp.2", g.stack(x, g.number("projector.stack_factor")));
  return g.concat(g.concat(g.require("v.boi"), x, 1), g.require("v.eoi"), 1);
}

// Three convolutions in time and frequency, each of which halves both.
Node convolved(EncoderGraph& g, Node x) {
  for (const std::string_view name : {"a.conv2d.1", "a.conv2d.2", "a.conv2d.3"}) x = activated(g, name, g.conv_2d(name, x, 2, 1));
  x = g.cont(g.permute(x, {2, 0, 1, 3}));
  return g.linear("a.conv_out", g.reshape(x, g.ne(x, 0) * g.ne(x, 1), g.ne(x, 2) * g.ne(x, 3)));
}

Node qwen3a(EncoderGraph& g) {
  constexpr int64_t kChunk = 100;  // frames
  const int64_t n_chunks = g.width() / kChunk;
  const Node raw = g.raw(1);
  const int64_t step = kChunk * kActivationBytes;
  Node x = g.cont(g.view(raw, {kChunk, g.height(), 1, n_chunks}, {g.width() * kActivationBytes, step, step}));
  x = convolved(g, x);
  const Tensor& table = g.require("a.position_embd");
  x = g.add(x, g.cont(Operand(table), {table.shape[0], g.ne(x, 1), 1, 1}));
  x = g.transformer(x, g.ne(x, 1), {});
  return g.ffn("mm.a.mlp.1", "mm.a.mlp.2", x);
}

Node dots3note_a(EncoderGraph& g) {
  Node x = convolved(g, g.raw(1));
  x = g.transformer(x, g.ne(x, 1), {.norm = NormKind::rms, .rotate = g.rotation(g.indices(g.ne(x, 1)))});
  return g.ffn("mm.a.mlp.1", "mm.a.mlp.3", g.norm("mm.a.norm_pre", x, NormKind::layer));
}

// Sound as codes: the nearest row of a codebook, then of the next one for what that row leaves, and so on.
std::vector<Node> quantised(EncoderGraph& g, Node x) {
  const Tensor& books = g.require("a.rvq.codebook");
  std::vector<Node> codes;
  for (const int64_t n_rows : g.numbers("rvq.codebook_size")) {
    const Node book = g.cont(Operand(books), {books.shape[0], n_rows, 1, 1});
    const Node norms = g.cont(g.transpose(g.sum_rows(g.map(book))));
    const Node products = g.mul_mat(book, x);
    const Node scores = g.element_wise({g.map(products), norms}, g.layout(products));
    codes.push_back(g.fresh(OpKind::elementwise, {scores}, Layout::packed({g.ne(x, 1), 1, 1, 1}, kI32)));
    x = g.add(x, g.get_rows(book, codes.back()));
  }
  return codes;
}

Node embedded(EncoderGraph& g, const std::vector<Node>& codes) {
  const Tensor& tables = g.require("mm.a.code_embd");
  Node sum = kNoValue;
  for (const Node code : codes) {
    const Node part = g.get_rows(g.cont(Operand(tables), {tables.shape[0], tables.shape[1], 1, 1}), code);
    sum = sum == kNoValue ? part : g.add(sum, part);
  }
  return sum;
}

// A layer of the language model's side, which sees groups of steps.
Node local_layer(EncoderGraph& g, const std::string& layer, Node x, Node positions, Node mask) {
  const int64_t n_head = g.number("attention.head_count");
  const Node normed = g.norm(layer + "ln1", x, NormKind::rms);
  const auto heads = [&](std::string_view name) {
    return g.reshape(g.linear(layer + std::string(name), normed), g.n_embd() / n_head, n_head, g.ne(x, 1));
  };
  const Node q = heads("attn_q");
  const Node k = heads("attn_k");
  const Node v = heads("attn_v");
  const auto rotate = g.rotation(positions);
  const Node rotated = rotate(q);
  x = g.add(x, g.attend(layer + "attn_out", rotated, rotate(k), v, mask));
  return g.add(x, g.ffn(layer + "ffn_up", layer + "ffn_down", g.norm(layer + "ln2", x, NormKind::rms), 1, layer + "ffn_gate"));
}

Node mimo_audio(EncoderGraph& g) {
  constexpr int64_t kSkipped = 2;  // what this layer has behind its attention is added behind the last one
  Node x = g.cont(g.transpose(convolved_in_time(g)));
  const int64_t n = g.ne(x, 1);
  const Node positions = g.indices(n);
  const Node all = g.floats({n, n, 1, 1});
  const Node window = g.floats({n, n, 1, 1});
  const std::vector<int64_t> modes = g.numbers("wa_pattern_mode");
  Node skipped = kNoValue;
  const LayerStyle style{.rotate = g.rotation(positions),
                         .mask = [&](int64_t layer) { return modes.at(static_cast<size_t>(layer)) == -1 ? all : window; },
                         .attended = [&](int64_t layer, Node between) { skipped = layer == kSkipped ? between : skipped; }};
  x = g.reshape(x, g.n_embd(), n);
  for (int64_t i = 0; i < g.n_layer(); ++i) x = g.layer(i, x, n, 1, style);
  x = g.norm("a.post_ln", g.add(g.reshape(g.reshape(x, g.n_embd(), n, 1), g.n_embd(), n), skipped), NormKind::layer);
  x = g.map(g.conv_1d("a.downsample.conv", g.cont(g.transpose(x)), 2, 0));
  x = g.norm("a.downsample.norm", g.cont(g.transpose(x)), NormKind::layer);
  x = embedded(g, quantised(g, x));
  const int64_t group = g.number("local_group_size");
  const int64_t more = (group - g.ne(x, 1) % group) % group;
  if (more > 0) x = g.pad(x, {0, more, 0, 0});
  const int64_t n_local = g.ne(x, 1);
  const Node local_positions = g.indices(n_local);
  const Node local_mask = g.floats({n_local, n_local, 1, 1});
  for (int64_t i = 0; i < g.number("local_block_count"); ++i) {
    x = local_layer(g, "mm.a.local_blk." + std::to_string(i) + ".", x, local_positions, local_mask);
  }
  x = g.reshape(g.norm("mm.a.local_norm", x, NormKind::rms), g.n_embd() * group, n_local / group);
  return g.ffn("mm.a.mlp.1", "mm.a.mlp.2", x);
}

// No encoder: the waveform's frames are projected.
Node gemma4ua(EncoderGraph& g) {
  const Node frames = g.cont(g.permute(g.raw(1), {1, 0, 2, 3}));
  return g.linear("mm.a.input_projection", g.rms(frames));
}

constexpr std::array<EncoderKind, 10> kKinds{{
    {"ultravox", ultravox},
    {"voxtral", voxtral},
    {"musicflamingo", music_flamingo},
    {"qwen2a", qwen2a},
    {"meralion", meralion},
    {"glma", glma},
    {"qwen3a", qwen3a},
    {"dots3note_a", dots3note_a},
    {"mimo_audio", mimo_audio},
    {"gemma4ua", gemma4ua},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_sound() { return kKinds; }

}  // namespace pshard
