// Encoders of a speaker's voice, of which a model that speaks makes its own. Facts are those of llama.cpp's tools/mtmd/models (0c1e57098).
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

Node transposed(EncoderGraph& g, Node x) { return g.cont(g.transpose(x)); }

// --- ECAPA-TDNN (Qwen3-TTS): x[channels, steps].

// A convolution that leaves the length as it is. All weights are read through views, which decide nothing: what comes before the first
// product is done `on_host`, where the sound is.
Node same_length(EncoderGraph& g, const std::string& name, Node x, int64_t dilation = 1, bool on_host = false) {
  const Tensor& kernel = g.require(name);
  const int64_t taps = kernel.shape[0];
  const int64_t channels = kernel.shape[1];
  const int64_t n = g.ne(x, 1);
  const int64_t reach = (taps - 1) * dilation / 2;
  std::vector<Node> before{transposed(g, x)};
  if (reach > 0) before.push_back(g.pad(before.back(), {2 * reach, 0, 0, 0}));
  const Node shape = g.room(Layout::packed({taps, channels, 1, 1}));
  const Node padded = g.reshape(before.back(), g.ne(before.back(), 0), channels);
  before.push_back(g.fresh(OpKind::copy, {shape, padded}, Layout::packed({taps * channels, n, 1, 1})));
  if (on_host) {
    for (const Node node : before) g.operation(node).host_only = true;
  }
  const Node columns = g.reshape(before.back(), taps * channels, n);
  return g.add(g.flat_product(kernel, columns), *g.find_bias(name));
}

Node mean_over_time(EncoderGraph& g, Node x) { return g.sum_rows(transposed(g, x)); }

// Eighths of the channels, each of which goes on from the one before.
Node res2net(EncoderGraph& g, const std::string& layer, Node x, int64_t dilation) {
  constexpr int64_t kParts = 8;
  const int64_t n = g.ne(x, 1);
  const int64_t row = g.layout(x).nb[1];
  const auto part = [&] { return g.cont(g.view(x, {g.ne(x, 0) / kParts, n, 1, 1}, {row, row * n, row * n})); };
  std::vector<Node> outputs{part()};
  for (int64_t i = 1; i < kParts; ++i) {
    const Node own = part();
    const Node in = i > 1 ? g.add(own, outputs.back()) : own;
    outputs.push_back(g.map(same_length(g, layer + "res2." + std::to_string(i - 1), in, dilation)));
  }
  Node all = outputs.front();
  for (size_t i = 1; i < outputs.size(); ++i) all = g.concat(all, outputs[i], 0);
  return all;
}

Node squeezed_and_excited(EncoderGraph& g, const std::string& layer, Node x) {
  Node gate = transposed(g, mean_over_time(g, x));
  gate = g.map(same_length(g, layer + "se_conv1", gate));
  gate = g.map(same_length(g, layer + "se_conv2", gate));
  return g.mul(x, gate);
}

// Means and deviations over time, weighted by attention.
Node attentive_statistics(EncoderGraph& g, Node x) {
  const std::array<int64_t, 4> shape = g.layout(x).ne;
  const auto deviation = [&](Node variance) { return g.map(g.map(variance)); };
  const Node mean = g.repeat(transposed(g, mean_over_time(g, x)), shape);
  const Node variance = transposed(g, mean_over_time(g, g.map(g.add(x, mean))));
  const Node spread = g.repeat(deviation(variance), shape);
  Node scores = same_length(g, "a.asp_tdnn", g.concat(g.concat(x, mean, 0), spread, 0));
  scores = same_length(g, "a.asp_attn", g.map(g.map(scores)));
  const Node weights = transposed(g, g.map(transposed(g, scores)));
  const Node weighted = transposed(g, g.map(mean_over_time(g, g.mul(weights, x))));
  const Node off = g.map(g.add(x, g.repeat(weighted, shape)));
  const Node weighted_variance = transposed(g, g.map(mean_over_time(g, g.mul(weights, off))));
  return g.concat(weighted, deviation(weighted_variance), 0);
}

Node qwen3tts_speaker(EncoderGraph& g) {
  constexpr std::array<int64_t, 3> kDilations{2, 3, 4};
  Node x = transposed(g, g.reshape(g.raw(1), g.width(), g.height()));
  g.operation(x).host_only = true;
  x = g.map(same_length(g, "a.conv1d.0", x, 1, true));
  std::vector<Node> outputs;
  for (size_t i = 0; i < kDilations.size(); ++i) {
    const std::string layer = g.layer_name(static_cast<int64_t>(i) + 1, "");
    Node y = g.map(same_length(g, layer + "conv_pw1", x));
    y = g.map(same_length(g, layer + "conv_pw2", res2net(g, layer, y, kDilations.at(i))));
    x = g.add(squeezed_and_excited(g, layer, y), x);
    outputs.push_back(x);
  }
  x = g.map(same_length(g, "a.conv_out", g.concat(g.concat(outputs[0], outputs[1], 0), outputs[2], 0)));
  x = same_length(g, "mm.a.fc", attentive_statistics(g, x));
  return g.cont(g.reshape(x, g.ne(x, 0), 1));
}

// --- Mimi (Pocket TTS): x[steps, channels], from the waveform on.

// Steps see only what was before them: all padding is in front, and behind so much that no step is lost.
Node causal(EncoderGraph& g, const std::string& name, Node x, int64_t stride, bool repeats_first = false) {
  const int64_t before = g.require(name).shape[0] - stride;
  const int64_t n = g.ne(x, 0);
  const int64_t behind = (n + stride - 1) / stride * stride - n;
  if (repeats_first) {
    const Layout all = g.layout(x);
    const Node first = g.view(x, {1, all.ne[1], 1, 1}, {all.nb[1], all.nb[2], all.nb[3]});
    x = g.pad(g.concat(g.repeat(first, {before, all.ne[1], 1, 1}), x, 0), {behind, 0, 0, 0});
  } else {
    x = g.pad(x, {before + behind, 0, 0, 0});
  }
  x = g.conv_1d(name, x, stride, 0);
  x = g.reshape(x, g.ne(x, 0), g.ne(x, 1));
  const Tensor* bias = g.find_bias(name);
  return bias != nullptr ? g.add(x, *bias) : x;
}

Node pockettts_speaker(EncoderGraph& g) {
  constexpr std::array<int64_t, 3> kStrides{4, 5, 6};
  constexpr int64_t kSteps = 16;  // of Mimi's that become one row of the model
  Node x = causal(g, "a.seanet.conv_in", g.reshape(g.raw(1), g.width(), g.height()), 1);
  for (size_t i = 0; i < kStrides.size(); ++i) {
    const std::string stage = "a.seanet.blk." + std::to_string(i) + ".";
    const Node inner = causal(g, stage + "res_conv1", g.map(x), 1);
    x = g.add(x, causal(g, stage + "res_conv2", g.map(inner), 1));
    x = causal(g, stage + "scale_conv", g.map(x), kStrides.at(i));
  }
  x = transposed(g, causal(g, "a.seanet.conv_out", g.map(x), 1));
  const int64_t n = g.ne(x, 1);
  const LayerStyle style{.rotate = g.rotation(g.indices(n)), .mask = [mask = g.floats({n, n, 1, 1})](int64_t) { return mask; }};
  for (int64_t i = 0; i < g.n_layer(); ++i) x = g.layer(i, x, n, 1, style);
  x = causal(g, "a.downsample.conv", transposed(g, x), kSteps, true);
  return g.linear("a.speaker_proj", transposed(g, x));
}

constexpr std::array<EncoderKind, 2> kKinds{{
    {"qwen3tts_spkenc", qwen3tts_speaker},
    {"pockettts_spkenc", pockettts_speaker},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_voices() { return kKinds; }

}  // namespace pshard
