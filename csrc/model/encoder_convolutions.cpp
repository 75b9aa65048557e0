// Encoders of images that are convolutions, or begin with an encoder of their own: MobileNet (Gemma 3n), ConvNeXt (Yasa), SAM
// (DeepSeek-OCR). Facts are those of llama.cpp's tools/mtmd/models (0c1e57098).
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

std::array<int64_t, 3> strides_of(const Layout& layout) { return {layout.nb[1], layout.nb[2], layout.nb[3]}; }

// --- MobileNet-V5: x[columns, rows, channels].

Node rms_of_channels(EncoderGraph& g, std::string_view name, Node x) {
  const Tensor* weight = g.find(name);
  if (weight == nullptr) return x;
  const Node rows = g.mul(g.rms(g.cont(g.permute(x, {2, 1, 0, 3}))), *weight);
  return g.cont(g.permute(rows, {2, 1, 0, 3}));
}

// So that a convolution leaves the size over its stride, rounded up.
Node padded_for(EncoderGraph& g, Node x, int64_t kernel, int64_t stride) {
  const auto more = [&](int64_t n) { return std::max<int64_t>((n + stride - 1) / stride * stride - stride + kernel - n, 0); };
  const int64_t columns = more(g.ne(x, 0));
  const int64_t rows = more(g.ne(x, 1));
  return columns + rows > 0 ? g.pad(x, {columns, rows, 0, 0}) : x;
}

Node edge_residual(EncoderGraph& g, const std::string& block, Node x, int64_t stride) {
  Node out =
      stride == 2 ? g.conv_2d_direct(block + "conv_exp", padded_for(g, x, 3, 2), 2, 0) : g.conv_2d_direct(block + "conv_exp", x, 1, 1);
  out = g.map(rms_of_channels(g, block + "bn1", out));
  out = rms_of_channels(g, block + "bn2", g.conv_2d_direct(block + "conv_pwl", out, 1, 0));
  return stride == 1 && g.layout(out).ne == g.layout(x).ne ? g.add(out, x) : out;
}

Node inverted_residual(EncoderGraph& g, const std::string& block, Node x, int64_t stride) {
  Node out = x;
  if (const Tensor* kernel = g.find(block + "dw_start.conv")) {
    out = rms_of_channels(g, block + "dw_start.bn", g.conv_2d_by_channel(block + "dw_start.conv", out, 1, kernel->shape[0] / 2));
  }
  if (g.has(block + "pw_exp.conv")) {
    out = g.map(rms_of_channels(g, block + "pw_exp.bn", g.conv_2d_direct(block + "pw_exp.conv", out, 1, 0)));
  }
  if (const Tensor* kernel = g.find(block + "dw_mid.conv")) {
    const int64_t side = kernel->shape[0];
    if (stride > 1) out = padded_for(g, out, side, stride);
    out = g.conv_2d_by_channel(block + "dw_mid.conv", out, stride, stride > 1 ? 0 : side / 2);
    out = g.map(rms_of_channels(g, block + "dw_mid.bn", out));
  }
  if (g.has(block + "pw_proj.conv")) {
    out = rms_of_channels(g, block + "pw_proj.bn", g.conv_2d_direct(block + "pw_proj.conv", out, 1, 0));
  }
  if (const Tensor* scale = g.find(block + "layer_scale.gamma")) out = g.mul(out, *scale);
  return g.layout(out).ne == g.layout(x).ne ? g.add(out, x) : out;
}

Node pixel_attention(EncoderGraph& g, const std::string& block, Node x) {
  const Node normed = rms_of_channels(g, block + "norm", x);
  const Node q = g.conv_2d_direct(block + "attn.query.proj", normed, 1, 0);
  const auto smaller = [&](const std::string& part) {
    Node y = normed;
    if (const Tensor* kernel = g.find(block + part + ".down_conv")) {
      y = g.conv_2d_by_channel(block + part + ".down_conv", padded_for(g, normed, kernel->shape[0], 2), 2, 0);
      y = rms_of_channels(g, block + part + ".norm", y);
    }
    return g.conv_2d_direct(block + part + ".proj", y, 1, 0);
  };
  const Node k = smaller("attn.key");
  const Node v = smaller("attn.value");
  const int64_t head = g.ne(k, 2);
  const int64_t n_head = g.ne(q, 2) / head;
  const int64_t n = g.ne(x, 0) * g.ne(x, 1);
  const int64_t n_keys = g.ne(k, 0) * g.ne(k, 1);
  const Node queries = g.cont(g.transpose(g.reshape(q, n, head, n_head)));
  const Node keys = g.cont(g.transpose(g.reshape(k, n_keys, head)));
  const Node values = g.cont(g.reshape(v, n_keys, head));
  const Node weights = g.map(g.map(g.mul_mat(keys, queries)));
  Node out = g.cont(g.transpose(g.mul_mat(values, weights)));
  out = g.cont(g.reshape(out, g.ne(x, 0), g.ne(x, 1), head * n_head));
  out = g.conv_2d_direct(block + "attn.output.proj", out, 1, 0);
  if (const Tensor* scale = g.find(block + "layer_scale.gamma")) out = g.mul(out, *scale);
  return g.add(out, x);
}

Node gemma3nv(EncoderGraph& g) {
  constexpr int kStages = 4;
  constexpr int64_t kOutputSide = 16;
  Node x = g.conv_2d_direct("v.conv_stem.conv", padded_for(g, g.raw(), 3, 2), 2, 0);
  if (const Tensor* bias = g.find_bias("v.conv_stem.conv")) x = g.add(x, *bias);
  x = g.map(rms_of_channels(g, "v.conv_stem.bn", x));
  std::vector<Node> kept;
  for (int stage = 0; stage < kStages; ++stage) {
    for (int i = 0;; ++i) {
      const std::string block = "v.blk." + std::to_string(stage) + "." + std::to_string(i) + ".";
      const int64_t stride = i == 0 ? 2 : 1;
      if (g.has(block + "conv_exp")) {
        x = edge_residual(g, block, x, stride);
      } else if (g.has(block + "attn.query.proj")) {
        x = pixel_attention(g, block, x);
      } else if (g.has(block + "dw_start.conv") || g.has(block + "pw_exp.conv")) {
        x = inverted_residual(g, block, x, stride);
      } else {
        break;
      }
    }
    if (stage + 2 >= kStages) kept.push_back(x);
  }
  const int64_t side = g.ne(kept.front(), 0);
  x = kept.front();
  for (size_t i = 1; i < kept.size(); ++i) {
    const Node other = kept[i];
    const bool is_smaller = g.ne(other, 0) < side;
    x = g.concat(x, is_smaller ? g.fresh(OpKind::copy, {other}, Layout::packed({side, side, g.ne(other, 2), 1})) : other, 2);
  }
  x = g.map(rms_of_channels(g, "v.msfa.ffn.pw_exp.bn", g.conv_2d_direct("v.msfa.ffn.pw_exp.conv", x, 1, 0)));
  x = rms_of_channels(g, "v.msfa.ffn.pw_proj.bn", g.conv_2d_direct("v.msfa.ffn.pw_proj.conv", x, 1, 0));
  if (side > kOutputSide) x = g.pool_2d(x, side / kOutputSide, side / kOutputSide);
  x = rms_of_channels(g, "v.msfa.norm", x);
  const int64_t n = g.ne(x, 0) * g.ne(x, 1);
  x = g.cont(g.permute(g.permute(x, {2, 1, 0, 3}), {0, 2, 1, 3}));
  x = g.rms(g.map(g.cont(g.reshape(x, g.ne(x, 0), n))));
  if (const Tensor* scale = g.find("mm.soft_emb_norm")) x = g.mul(x, *scale);
  return g.rms(g.linear("mm.input_projection", x));
}

// --- ConvNeXt (Yasa): x[columns, rows, channels].

// A norm over the channels, of single steps.
Node norm_in_steps(EncoderGraph& g, std::string_view name, Node x) {
  const Node rows = g.cont(g.permute(x, {2, 1, 0, 3}));
  const Node centred = g.add(rows, g.sum_rows(rows));
  const Node deviation = g.map(g.map(g.sum_rows(g.mul(centred, centred))));
  Node out = g.cont(g.permute(g.div(centred, deviation), {2, 1, 0, 3}));
  if (const Tensor* weight = g.find(name)) out = g.mul(out, *weight);
  if (const Tensor* bias = g.find_bias(name)) out = g.add(out, *bias);
  return out;
}

Node biased(EncoderGraph& g, std::string_view name, Node x) {
  const Tensor* bias = g.find_bias(name);
  return bias != nullptr ? g.add(x, *bias) : x;
}

// By how strong each channel is in the whole image, against the others.
Node norm_of_responses(EncoderGraph& g, std::string_view name, Node x) {
  const std::array<int64_t, 4> shape = g.layout(x).ne;
  const Node squares = g.reshape(g.mul(x, x), shape[0] * shape[1], shape[2], 1, shape[3]);
  const Node strength = g.map(g.sum_rows(squares));
  const Node mean = g.map(g.sum_rows(g.cont(g.permute(strength, {1, 0, 2, 3}))));
  const Node relative = g.cont(g.permute(g.div(strength, mean), {0, 2, 1, 3}));
  Node scaled = g.mul(x, relative);
  if (const Tensor* weight = g.find(name)) scaled = g.mul(scaled, *weight);
  return g.add(x, biased(g, name, scaled));
}

Node channels_in_front(EncoderGraph& g, Node x) {
  return g.cont(g.permute(g.reshape(x, g.ne(x, 0) * g.ne(x, 1), g.ne(x, 2), g.ne(x, 3)), {1, 0, 2, 3}));
}

Node channels_behind(EncoderGraph& g, Node x, int64_t columns, int64_t rows) {
  return g.reshape(g.cont(g.permute(x, {1, 0, 2, 3})), columns, rows, g.ne(x, 0), g.ne(x, 2));
}

Node convnext_block(EncoderGraph& g, const std::string& block, Node x) {
  const int64_t columns = g.ne(x, 0);
  const int64_t rows = g.ne(x, 1);
  Node out = biased(g, block + "dw", g.conv_2d_by_channel(block + "dw", x, 1, 3));
  out = g.linear(block + "pw1", channels_in_front(g, norm_in_steps(g, block + "ln", out)));
  out = norm_of_responses(g, block + "grn", g.map(channels_behind(g, out, columns, rows)));
  out = g.linear(block + "pw2", channels_in_front(g, out));
  return g.add(x, channels_behind(g, out, columns, rows));
}

Node yasa2(EncoderGraph& g) {
  constexpr int64_t kOutputSide = 8;
  Node x = norm_in_steps(g, "v.patch_ln", biased(g, "v.patch_embd", g.conv_2d("v.patch_embd", g.raw(), g.patch(), 0)));
  for (int stage = 0;; ++stage) {
    const std::string name = "v.stage." + std::to_string(stage) + ".";
    const bool halves = g.has(name + "down.conv");
    if (!halves && !g.has(name + "blk.0.dw")) break;
    if (halves) x = biased(g, name + "down.conv", g.conv_2d(name + "down.conv", norm_in_steps(g, name + "down.ln", x), 2, 0));
    for (int i = 0; g.has(name + "blk." + std::to_string(i) + ".dw"); ++i) {
      x = convnext_block(g, name + "blk." + std::to_string(i) + ".", x);
    }
  }
  const int64_t columns = g.ne(x, 0);
  const int64_t rows = g.ne(x, 1);
  x = channels_in_front(g, x);
  const Tensor* positions = g.find("v.vision_pos_embed");
  if (positions != nullptr && positions->shape[1] == g.ne(x, 1)) x = g.add(x, *positions);
  x = channels_behind(g, x, columns, rows);
  x = g.pool_2d(x, columns / std::min(kOutputSide, columns), rows / std::min(kOutputSide, rows));
  return g.ffn("mm.0", "mm.2", channels_in_front(g, x));
}

// --- SAM, which DeepSeek-OCR puts before its encoder: x[channels, columns, rows, images].

Node partitioned(EncoderGraph& g, Node x, int64_t window) {
  const auto [n, columns, rows, images] = g.layout(x).ne;
  const int64_t more_columns = (window - columns % window) % window;
  const int64_t more_rows = (window - rows % window) % window;
  if (more_columns + more_rows > 0) x = g.pad(x, {0, more_columns, more_rows, 0});
  const int64_t across = (columns + more_columns) / window;
  const int64_t down = (rows + more_rows) / window;
  x = g.cont(g.permute(g.reshape(x, n * window, across, window, down * images), {0, 2, 1, 3}));
  return g.reshape(x, n, window, window, across * down * images);
}

Node joined(EncoderGraph& g, Node x, int64_t columns, int64_t rows, int64_t window) {
  const int64_t n = g.ne(x, 0);
  const int64_t across = (columns + window - 1) / window;
  const int64_t down = (rows + window - 1) / window;
  const int64_t images = g.ne(x, 3) / (across * down);
  x = g.cont(g.permute(g.reshape(x, n * window, window, across, down * images), {0, 2, 1, 3}));
  x = g.reshape(x, n, across * window, down * window, images);
  return g.cont(g.view(x, {n, columns, rows, images}, strides_of(g.layout(x))));
}

// A table by distance, looked up for all pairs.
Node relative_positions(EncoderGraph& g, const std::string& name, Node pairs, int64_t n) {
  const Tensor& table = g.require(name);
  const int64_t width = table.shape[0];
  const Node flat = g.reshape(pairs, n * n, 1);
  if (2 * n - 1 == table.shape[1]) return g.reshape(g.look_up(table, flat), width, n, n);
  const Node turned = g.reshape(g.cont(Operand(table), {table.shape[1], width, 1, 1}), table.shape[1], 1, width);
  const Node resized = g.reshape(g.fresh(OpKind::copy, {turned}, Layout::packed({2 * n - 1, 1, width, 1})), 2 * n - 1, width);
  return g.reshape(g.get_rows(g.cont(g.transpose(resized)), flat), width, n, n);
}

Node sam_attention(EncoderGraph& g, const std::string& layer, Node x, Node pairs) {
  const int64_t n_embd = g.number("sam.embedding_length");
  const int64_t n_head = g.number("sam.head_count");
  const int64_t head = n_embd / n_head;
  const int64_t columns = g.ne(x, 1);
  const int64_t rows = g.ne(x, 2);
  const int64_t images = g.ne(x, 3);
  const Node all = g.reshape(g.linear(layer + "attn.qkv", x), n_embd, 3, columns * rows, images);
  const auto part = [&] {
    const Layout& whole = g.layout(all);
    const Node cut = g.view(all, {n_embd, columns * rows, images, 1}, {whole.nb[2], whole.nb[3], whole.nb[3] * images});
    return g.reshape(g.cont(cut), head, n_head, columns * rows, images);
  };
  const Node q = part();
  const Node k = part();
  const Node v = part();
  Node across = relative_positions(g, layer + "attn.pos_w", pairs, columns);
  Node down = relative_positions(g, layer + "attn.pos_h", pairs, rows);
  const Node queries = g.reshape(g.cont(g.permute(q, {0, 2, 1, 3})), head, columns, rows, images * n_head);
  across = g.mul_mat(across, g.cont(g.permute(queries, {0, 2, 1, 3})));
  across = g.reshape(g.cont(g.permute(across, {0, 2, 1, 3})), columns, 1, columns * rows, n_head * images);
  across = g.repeat(across, {columns, rows, columns * rows, n_head * images});
  down = g.reshape(g.mul_mat(down, queries), 1, rows, columns * rows, n_head * images);
  Node mask = g.reshape(g.add(across, down), columns * rows, columns * rows, n_head, images);
  if (g.flash_attn()) mask = g.cast(mask, kF16);
  const Node out = g.attend(layer + "attn.out", q, k, v, mask);
  return g.reshape(g.cont(out), n_embd, columns, rows, images);
}

Node conv_of_channels_last(EncoderGraph& g, const std::string& convolution, const std::string& norm, Node x, int64_t padding) {
  const Node made = g.cont(g.permute(g.conv_2d(convolution, x, 1, padding), {1, 2, 0, 3}));
  return g.cont(g.permute(g.norm(norm, made, NormKind::layer), {2, 0, 1, 3}));
}

// [columns, rows, channels, images], a sixteenth of the image's sides, over four.
Node sam(EncoderGraph& g, Node image) {
  constexpr std::array<int64_t, 4> kGlobal{2, 5, 8, 11};  // layers that see the whole image
  g.keep_f32_columns();
  const int64_t window = g.number("window_size");
  Node x = g.conv_2d("v.sam.patch_embd", image, g.require("v.sam.patch_embd").shape[0], 0);
  x = g.cont(g.permute(g.add(x, *g.find_bias("v.sam.patch_embd")), {1, 2, 0, 3}));
  const Node local = g.indices(window * window);
  const Node global = g.indices(g.ne(x, 1) * g.ne(x, 2));
  const Tensor& table = g.require("v.sam.pos_embd");
  if (table.shape[1] == g.ne(x, 1)) {
    x = g.add(x, table);
  } else {
    const int64_t side = g.ne(x, 1);
    const Node turned = g.cont(Operand(table), {table.shape[1], table.shape[2], table.shape[0], 1});
    const Node resized = g.fresh(OpKind::copy, {turned}, Layout::packed({side, side, table.shape[0], 1}));
    x = g.add(x, g.cont(g.permute(resized, {1, 2, 0, 3})));
  }
  for (int64_t i = 0; i < g.number("sam.block_count"); ++i) {
    const std::string layer = "v.sam.blk." + std::to_string(i) + ".";
    const bool sees_all = std::find(kGlobal.begin(), kGlobal.end(), i) != kGlobal.end();
    const int64_t columns = g.ne(x, 1);
    const int64_t rows = g.ne(x, 2);
    Node out = g.norm(layer + "pre_ln", x, NormKind::layer);
    if (!sees_all) out = partitioned(g, out, window);
    out = sam_attention(g, layer, out, sees_all ? global : local);
    if (!sees_all) out = joined(g, out, columns, rows, window);
    x = g.add(out, x);
    x = g.add(g.ffn(layer + "mlp.lin1", layer + "mlp.lin2", g.norm(layer + "post_ln", x, NormKind::layer)), x);
  }
  x = g.cont(g.permute(x, {2, 0, 1, 3}));
  x = conv_of_channels_last(g, "v.sam.neck.0", "v.sam.neck.1", x, 0);
  x = conv_of_channels_last(g, "v.sam.neck.2", "v.sam.neck.3", x, 1);
  x = g.conv_2d("v.sam.net_3", g.conv_2d("v.sam.net_2", x, 2, 1), 2, 1);
  g.expand(x);
  return x;
}

// One square after the other in each row of the image.
Node deepseekocr(EncoderGraph& g) {
  const int64_t side = g.width();
  const int64_t tiles = g.height() / side;
  const int64_t n_batch = tiles * g.n_images();
  Node image = g.reshape(g.raw(), side * side, tiles, 3, g.n_images());
  image = g.reshape(g.cont(g.permute(image, {0, 2, 1, 3})), side, side, 3, n_batch);
  const Node seen = sam(g, image);
  const int64_t n = g.ne(seen, 0) * g.ne(seen, 1);
  const Node patches = g.cont(g.transpose(g.reshape(seen, n, g.ne(seen, 2), n_batch)));
  const Tensor& table = g.require("v.position_embd");
  const auto known = static_cast<int64_t>(std::sqrt(static_cast<double>(table.shape[1] - 1)));
  Node positions = kNoValue;
  if (known == g.ne(seen, 0)) {
    positions = g.look_up(table, g.numbered(n + 1));
  } else {
    const int64_t now = g.ne(seen, 0);
    const Node resized = g.fresh(OpKind::copy, {kWeight}, Layout::packed({now, now, table.shape[0], 1}), &table);
    const Layout with = Layout::packed({g.n_embd(), n + 1, 1, 1});
    const Node with_class = g.fresh(OpKind::copy, {g.reshape(resized, g.n_embd(), n), kWeight}, with, &table);
    positions = g.get_rows(with_class, g.numbered(n + 1));
  }
  const Node tokens = g.cont(Operand(g.require("v.class_embd")), {g.n_embd(), 1, n_batch, 1});
  const Node encoded = g.transformer(g.concat(tokens, patches, 1), n + 1, {}, positions);
  g.expand(encoded);
  const Node by_patch = g.reshape(g.cont(g.permute(seen, {1, 2, 0, 3})), g.ne(seen, 2), n, n_batch);
  const Layout& whole = g.layout(encoded);
  const Node without_class = g.view(encoded, {g.n_embd(), n, n_batch, 1}, strides_of(whole));
  Node x = g.linear("mm.model.fc", g.concat(without_class, by_patch, 0));
  const int64_t width = g.ne(x, 0);
  const int64_t rows = g.ne(seen, 0);
  x = g.cont(g.permute(g.reshape(x, width * rows, rows, tiles, g.n_images()), {0, 2, 1, 3}));
  x = g.reshape(x, width, rows * tiles, rows, g.n_images());
  x = g.concat(x, g.cont(Operand(g.require("v.image_newline")), {width, 1, rows, g.n_images()}), 1);
  return g.reshape(x, width, (rows * tiles + 1) * rows, g.n_images());
}

// A language model's layers read what SAM saw, and then queries.
Node deepseekocr2(EncoderGraph& g) {
  const Node seen = sam(g, g.raw());
  const int64_t n = g.ne(seen, 0) * g.ne(seen, 1);
  const Node patches = g.cont(g.transpose(g.reshape(seen, n, g.ne(seen, 2), g.ne(seen, 3))));
  const Tensor& learned = g.require(n == 144 ? "v.resample_query_768" : "v.resample_query_1024");
  const Node queries = g.fresh(OpKind::copy, {kWeight}, Layout::packed(learned.shape), &learned);
  const int64_t n_queries = n == 144 ? 144 : 256;
  const Node repeated = g.repeat(queries, {learned.shape[0], n_queries, g.n_images(), 1});
  const Node all = g.concat(patches, repeated, 1);
  const int64_t length = g.ne(all, 1);
  const Node mask = g.floats({length, length, 1, 1});
  const LayerStyle style{.norm = NormKind::rms, .rotate = g.rotation(g.numbered(length)), .mask = [mask](int64_t) { return mask; }};
  const Node x = g.transformer(all, length, style);
  const Node answers = g.cont(g.view(x, {g.ne(x, 0), n_queries, g.ne(x, 2), 1}, strides_of(g.layout(x))));
  g.expand(answers);
  return g.linear("mm.model.fc", answers);
}

constexpr std::array<EncoderKind, 4> kKinds{{
    {"gemma3nv", gemma3nv},
    {"yasa2", yasa2},
    {"deepseekocr", deepseekocr},
    {"deepseekocr2", deepseekocr2},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_convolutions() { return kKinds; }

}  // namespace pshard
