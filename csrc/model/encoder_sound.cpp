// Encoders of sound. Facts are those of llama.cpp's tools/mtmd/models (0c1e57098).
#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

Node activated(EncoderGraph& g, std::string_view convolution, Node x) { return g.map(g.add(x, *g.find_bias(convolution))); }

// Whisper: two convolutions over time, of which the second halves it.
Node whisper(EncoderGraph& g) {
  const int64_t n = g.width() / 2;
  Node x = g.raw(1);
  for (const auto& [name, stride] : {std::pair<std::string_view, int64_t>{"a.conv1d.1", 1}, {"a.conv1d.2", 2}}) {
    x = activated(g, name, g.conv_1d(name, x, stride, g.require(name).shape[0] / 2));
  }
  return g.transformer(g.cont(g.transpose(x)), n, {}, g.require("a.position_embd"));
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

// No encoder: the waveform's frames are projected.
Node gemma4ua(EncoderGraph& g) {
  const Node frames = g.cont(g.permute(g.raw(1), {1, 0, 2, 3}));
  return g.linear("mm.a.input_projection", g.rms(frames));
}

constexpr std::array<EncoderKind, 9> kKinds{{
    {"ultravox", ultravox},
    {"voxtral", voxtral},
    {"musicflamingo", music_flamingo},
    {"qwen2a", qwen2a},
    {"meralion", meralion},
    {"glma", glma},
    {"qwen3a", qwen3a},
    {"dots3note_a", dots3note_a},
    {"gemma4ua", gemma4ua},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_sound() { return kKinds; }

}  // namespace pshard
