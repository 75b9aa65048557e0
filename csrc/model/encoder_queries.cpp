// Encoders of images that learned queries sum up. Facts are those of llama.cpp's tools/mtmd/models (0c1e57098).
#include "model/encoder_queries.hpp"

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "model/encoder_kinds.hpp"

namespace pshard {

Node query_former(EncoderGraph& g, const std::string& layer, Node queries, Node seen, int64_t n_head) {
  const int64_t n = g.ne(queries, 0);
  const std::array<int64_t, 4> shape = g.layout(queries).ne;
  const auto attended = [&](const std::string& part, Node keys) {
    const auto heads = [&](std::string_view name, Node x) {
      const Node out = g.linear(layer + part + std::string(name), x);
      return g.reshape(out, n / n_head, n_head, g.ne(x, 1), g.ne(x, 2));
    };
    const Node q = heads("_q", queries);
    const Node k = heads("_k", keys);
    const Node v = heads("_v", keys);
    const Node out = g.reshape(g.attend(layer + part + "_out", q, k, v), n, shape[1], shape[2]);
    return g.norm(layer + part + "_norm", g.add(out, queries), NormKind::layer);
  };
  queries = attended("self_attn", queries);
  queries = attended("cross_attn", seen);
  return g.norm(layer + "ffn_norm", g.add(g.ffn(layer + "ffn_up", layer + "ffn_down", queries), queries), NormKind::layer);
}

namespace {

Node resampler(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  const int64_t width = g.require("resampler.proj").shape[0];
  const Node frequencies = g.floats({width / 4, 1, 1, 1});
  const Node down = g.floats({1, n, 1, 1});
  const Node across = g.floats({1, n, 1, 1});
  const Node chosen = g.look_up(g.require("v.position_embd"), g.indices(n));
  const Node image = g.transformer(g.patches(), n, {}, chosen);
  const Tensor& queries = g.require("resampler.query");
  const Layout query_layout = Layout::packed({queries.shape[0], queries.shape[1], 1, 1});
  Node q = g.fresh(OpKind::elementwise, {kWeight}, query_layout, &queries);
  q = g.add(g.mul(q, g.require("resampler.ln_q")), *g.find_bias("resampler.ln_q"));
  const Node v = g.norm("resampler.ln_kv", g.linear("resampler.kv", image), NormKind::layer);
  const Node repeated = g.repeat(frequencies, {width / 4, n, 1, 1});
  const auto waves = [&](Node at) {
    const Node angles = g.mul(repeated, at);
    const auto wave = [&] { return g.fresh(OpKind::elementwise, {angles}, g.layout(angles)); };
    const Node sine = wave();
    return g.concat(sine, wave(), 0);
  };
  const Node x = waves(across);
  const Node k = g.add(v, g.concat(x, waves(down), 0));
  constexpr int64_t kHead = 128;
  const auto heads = [&](Node node) { return g.reshape(node, kHead, width / kHead, g.ne(node, 1)); };
  q = g.linear("resampler.attn.q", q);
  const Node key = g.linear("resampler.attn.k", k);
  const Node value = g.linear("resampler.attn.v", v);
  const Node out = g.attend("resampler.attn.out", heads(q), heads(key), heads(value));
  return g.linear("resampler.proj", g.norm("resampler.ln_post", out, NormKind::layer));
}

// Of an image in squares, one above the other.
struct Tiles {
  int64_t n = 1;
  int64_t side = 0;  // patches
};

// What one of Granite's Q-Formers makes of a layer's output: [n, patches, tiles] to [n, tokens, tiles].
Node summed_up(EncoderGraph& g, const std::string& projector, Node seen, const Tiles& tiles, bool samples) {
  constexpr int64_t kHead = 64;
  const int64_t n = g.ne(seen, 0);
  const int64_t window = g.number("projector.window_side");
  const int64_t query = g.number("projector.query_side");
  const int64_t across = tiles.side / window;
  const int64_t n_windows = across * across * tiles.n;
  const int64_t smaller = across * query;
  const auto rows_of = [&](Node x, int64_t n_rows) { return g.get_rows(x, g.indices(n_rows, tiles.n)); };
  const Node normed = g.norm(projector + "norm", seen, NormKind::layer);
  const Node windows = g.reshape(rows_of(normed, tiles.side * tiles.side), n, window * window, n_windows);
  Node sampled = kNoValue;
  if (samples) {
    sampled = rows_of(normed, smaller * smaller);
  } else {
    const Node image = g.cont(g.permute(g.reshape(normed, n, tiles.side, tiles.side, tiles.n), {2, 0, 1, 3}));
    const int64_t step = tiles.side / smaller;
    const Node pooled = g.pool_2d(g.reshape(image, tiles.side, tiles.side, n * tiles.n), step, step);
    sampled = g.cont(g.permute(g.reshape(pooled, smaller, smaller, n, tiles.n), {1, 2, 0, 3}));
    sampled = g.reshape(sampled, n, smaller * smaller, tiles.n);
  }
  const Node in_windows = g.reshape(rows_of(sampled, smaller * smaller), n, query * query, n_windows);
  const Node asked = g.add(in_windows, g.require(projector + "query"));
  const Node looked_at = g.add(windows, g.require(projector + "img_pos"));
  const Node queries = g.norm(projector + "post_norm", asked, NormKind::layer);
  const Node answers = query_former(g, projector, queries, looked_at, n / kHead);
  const Node flat = g.reshape(answers, n, query * query * across * across, tiles.n);
  return g.linear(projector + "linear", rows_of(flat, smaller * smaller));
}

// The first tile shows the whole image. The others are its parts, whose tokens come row by row with a break behind each.
Node joined_tiles(EncoderGraph& g, Node x, const Tiles& tiles, int64_t columns) {
  const int64_t n = g.ne(x, 0);
  const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(g.ne(x, 1))));
  const int64_t rows = (tiles.n - 1) / columns;
  const Layout whole = g.layout(x);
  const Node overview = g.view(x, {n, side * side, 1, 1}, {whole.nb[1], whole.nb[2], whole.nb[2]});
  Node parts = g.view(x, {n, side * side, tiles.n - 1, 1}, {whole.nb[1], whole.nb[2], whole.nb[2] * (tiles.n - 1)});
  parts = g.cont(g.permute(g.reshape(parts, n * side, side, columns, rows), {0, 2, 1, 3}));
  parts = g.reshape(parts, n, columns * side, rows * side);
  const Tensor& line_break = g.require("v.image_newline");
  const int64_t width = line_break.shape[0];
  Node breaks = kNoValue;
  if (width == n) {
    breaks = g.cont(Operand(line_break), {width, 1, 1, 1});
  } else {
    const Node others = g.fresh(OpKind::copy, {kWeight}, Layout::packed({width, n / width - 1, 1, 1}), &line_break);
    breaks = g.cont(g.concat(line_break, others, 1));
  }
  breaks = g.repeat(g.reshape(breaks, n, 1), {n, 1, rows * side, 1});
  parts = g.concat(parts, breaks, 1);
  return g.concat(overview, g.reshape(parts, n, (columns * side + 1) * rows * side), 1);
}

Node granite4_vision(EncoderGraph& g) {
  const Tiles tiles{.n = g.height() / g.width(), .side = g.width() / g.patch()};
  Node image = g.raw();
  if (tiles.n > 1) {
    const int64_t pixels = g.width() * g.width();
    image = g.cont(g.permute(g.reshape(image, pixels, tiles.n, 3), {0, 2, 1, 3}));
    image = g.reshape(image, g.width(), g.width(), 3, tiles.n);
  }
  const int64_t n_patches = tiles.side * tiles.side;
  Node x = g.conv_2d("v.patch_embd", image, g.patch(), 0);
  x = g.cont(g.transpose(g.reshape(x, n_patches, g.n_embd(), tiles.n)));
  if (const Tensor* bias = g.find_bias("v.patch_embd")) x = g.add(x, *bias);
  x = g.add(x, g.require("v.position_embd"));
  std::vector<Node> outputs;
  for (int64_t i = 0; i < g.n_layer(); ++i) {
    x = g.layer(i, x, n_patches, tiles.n, {.reshapes_attention = true});
    outputs.push_back(x);
  }
  const std::vector<int64_t> features = g.numbers("feature_layer");
  const std::vector<int64_t> offsets = g.numbers("projector.spatial_offsets");
  Node all = kNoValue;
  for (size_t i = 0; i < features.size(); ++i) {
    const Node seen = outputs.at(static_cast<size_t>(features[i]));
    const Node part = summed_up(g, "v.proj_blk." + std::to_string(i) + ".", seen, tiles, i < offsets.size() && offsets[i] >= 0);
    all = all == kNoValue ? part : g.concat(all, part, 0);
  }
  return g.tile_columns() > 0 ? joined_tiles(g, all, tiles, g.tile_columns()) : all;
}

constexpr std::array<EncoderKind, 2> kKinds{{
    {"resampler", resampler},
    {"granite4_vision", granite4_vision},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_queries() { return kKinds; }

}  // namespace pshard
