// Encoders of images that rotate queries and keys by their patches' positions. Facts are those of llama.cpp's tools/mtmd/models
// (0c1e57098).
#include <array>
#include <string_view>
#include <utility>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

// Side by side in two dimensions: what is there, and positions along both.
struct Positions2d {
  Node down = kNoValue;
  Node across = kNoValue;
};
Positions2d positions_2d(EncoderGraph& g, int64_t n) {
  const Node down = g.indices(n);
  return {.down = down, .across = g.indices(n)};
}

// merge x merge patches in one column. CUDA has no such operation for a kernel that is no more than a shape.
Node unfolded(EncoderGraph& g, Node x, int64_t merge) {
  const Node shape = g.view(x, {merge, merge, g.ne(x, 2), 1}, {0, 0, 0});
  const Node out = g.unfold(shape, x, merge, kF32);
  g.operation(out).host_only = true;
  return g.reshape(out, g.ne(out, 0), g.ne(out, 1) * g.ne(out, 2));
}

Node pixtral(EncoderGraph& g) {
  const int64_t merge = g.merge(1);
  const Positions2d at = positions_2d(g, g.n_patches());
  const Node image = g.patches();
  Node x = g.transformer(image, g.n_patches(), {.norm = NormKind::rms, .rotate = g.rotation_2d(at.down, at.across)});
  if (g.has("mm.patch_merger")) {
    x = g.mul(g.rms(x), g.require("mm.input_norm"));
    x = g.linear("mm.patch_merger", unfolded(g, g.channels_first(x), merge));
  }
  x = g.ffn("mm.1", "mm.2", x);
  const Tensor* line_break = g.find("v.token_embd.img_break");
  if (line_break == nullptr) return x;
  const int64_t columns = g.columns() / merge;
  const int64_t rows = g.rows() / merge;
  const int64_t n = g.ne(x, 0);
  const Node lines = g.reshape(x, n, columns, rows);
  const Node breaks = g.add(g.map(g.room(Layout::packed({n, 1, rows, 1}))), *line_break);
  const Node all = g.concat(lines, breaks, 1);
  const int64_t row = g.layout(all).nb[1];
  return g.view(all, {n, columns * rows + rows - 1, 1, 1}, {row, row, row});
}

// The table of a stream of tokens that frames the image.
Node deepseek4v(EncoderGraph& g) {
  const int64_t merge = g.merge(1);
  const Node at = g.indices(4 * g.n_patches());
  const Node image = g.patches();
  Node x = g.transformer(image, g.n_patches(), {.norm = NormKind::rms, .rotate = g.rotation(at)});
  x = g.channels_first(x);
  const int64_t more_columns = (merge - g.columns() % merge) % merge;
  const int64_t more_rows = (merge - g.rows() % merge) % merge;
  if (more_columns + more_rows > 0) x = g.pad(x, {more_columns, more_rows, 0, 0});
  x = g.ffn("mm.1", "mm.2", unfolded(g, x, merge));
  for (const std::string_view token : {"v.token_embd.img_start", "v.token_embd.img_end", "v.image_newline", "v.token_embd.img_pad"}) {
    x = g.concat(x, g.require(token), 1);
  }
  // Rows with a line break each, an even number of them, in a frame of two tokens; two more where half of them are odd.
  const int64_t columns = (g.columns() + merge - 1) / merge;
  const int64_t rows = (g.rows() + merge - 1) / merge;
  const int64_t n = (rows + rows % 2) * (columns + 1);
  return g.get_rows(x, g.indices(2 + n + n / 2 % 2 * 2));
}

Node llama4(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  const Positions2d at = positions_2d(g, n + 1);
  const Tensor& kernel = g.require("v.patch_embd");
  Node x = g.unfold(kernel, g.raw(), g.patch(), kF32);
  x = g.reshape(g.linear("v.patch_embd", x), g.n_embd(), n);
  x = g.concat(x, g.require("v.class_embd"), 1);
  x = g.transformer(x, n + 1, {.rotate = g.rotation_2d(at.across, at.down)}, g.require("v.position_embd"));
  const int64_t row = g.layout(x).nb[1];
  x = g.view(x, {g.n_embd(), n, 1, 1}, {row, row * n, row * n});
  const int64_t merge = g.merge(1);
  const int64_t wide = g.n_embd() * merge * merge;
  x = g.permute(g.reshape(x, g.n_embd() * merge, g.columns() / merge, g.rows()), {0, 2, 1, 3});
  x = g.cont(x, {wide, g.columns() / merge, g.rows() / merge, 1});
  x = g.cont(x, {wide, n / (merge * merge), 1, 1});
  x = g.map(g.linear("mm.model.mlp.1", x));
  x = g.map(g.linear("mm.model.mlp.2", x));
  return g.linear("mm.model.fc", x);
}

// Merged patches, normed one by one before they are.
Node normed_patches(EncoderGraph& g, Node x) {
  const int64_t merge = g.merge(1);
  x = g.merge_patches(x, merge);
  const int64_t wide = g.ne(x, 0);
  const int64_t n = g.ne(x, 1);
  x = g.norm("mm.input_norm", g.reshape(x, g.n_embd(), n * merge * merge), NormKind::layer);
  return g.ffn("mm.1", "mm.2", g.reshape(x, wide, n));
}

Node kimivl(EncoderGraph& g) {
  const Positions2d at = positions_2d(g, g.n_patches());
  const Node image = g.patches();
  return normed_patches(g, g.transformer(image, g.n_patches(), {.rotate = g.rotation_2d(at.across, at.down)}, g.position_table()));
}

Node kimik25(EncoderGraph& g) {
  const Positions2d at = positions_2d(g, g.n_patches());
  const Tensor& table = g.require("v.position_embd");
  const std::array<int64_t, 4> flat{g.n_embd(), g.n_patches(), 1, 1};
  const Node image = g.patches();
  Node positions = kNoValue;
  if (g.rows() == table.shape[2] && g.columns() == table.shape[1]) {
    positions = g.cont(Operand(table), flat);
  } else {
    const Layout resized = Layout::packed({g.rows(), g.columns(), g.n_embd(), 1}, table.type);
    positions = g.cont(g.permute(g.fresh(OpKind::copy, {kWeight}, resized, &table), {2, 1, 0, 3}), flat);
  }
  const Node x = g.add(image, positions);
  return normed_patches(g, g.transformer(x, g.n_patches(), {.rotate = g.rotation_2d(at.across, at.down)}));
}

Node paddleocr(EncoderGraph& g) {
  const Node at = g.indices(4 * g.n_patches());
  const Node image = g.patches();
  Node x = g.transformer(image, g.n_patches(), {.rotate = g.rotation(at)}, g.position_table());
  x = g.norm("mm.input_norm", x, NormKind::layer);
  return g.ffn("mm.1", "mm.2", g.merge_patches(x, g.merge(2)));
}

Node dots_ocr(EncoderGraph& g) {
  const Node at = g.indices(4 * g.n_patches());
  Node x = g.transformer(g.patches(), g.n_patches(), {.norm = NormKind::rms, .rotate = g.rotation(at), .post_norm = "mm.post_norm"});
  x = g.norm("mm.input_norm", x, NormKind::layer);
  return g.ffn("mm.0", "mm.2", g.merge_patches(x, g.merge(1)));
}

// Patches of a scaled image, without a bias.
Node gemma4v(EncoderGraph& g) {
  const int64_t n = g.n_patches();
  Node x = g.conv_2d("v.patch_embd", g.map(g.raw()), g.patch(), 0);
  x = g.cont(g.transpose(g.reshape(x, n, g.n_embd(), g.n_images())));
  const Node across = g.indices(n);
  const Node down = g.indices(n);
  const Tensor& table = g.require("v.position_embd");
  x = g.add(x, g.look_up(table, across));
  x = g.add(x, g.look_up(table, down));
  g.clamp_products();
  x = g.transformer(x, n, {.norm = NormKind::rms, .rotate = g.rotation_2d(across, down), .norms_values = true});
  x = g.as_rows(g.pool_2d(g.as_image(x), g.merge(3), g.merge(3)));
  x = g.map(x);
  if (g.has("v.std_bias") && g.has("v.std_scale")) x = g.mul(g.add(x, g.require("v.std_bias")), g.require("v.std_scale"));
  return g.linear("mm.input_projection", g.rms(x));
}

// No encoder: patches are projected.
Node gemma4uv(EncoderGraph& g) {
  const int64_t side = g.patch() * g.number("projector.scale_factor", 3);
  g.set_patch(side);
  const int64_t n = g.n_patches();
  Node x = g.unfold(g.room(Layout::packed({side, side, 3, 1})), g.raw(), side, kF32);
  x = g.norm("v.patch_norm.1", g.reshape(x, g.ne(x, 0), n), NormKind::layer);
  x = g.norm("v.patch_norm.2", g.linear("v.patch_embd", x), NormKind::layer);
  const Tensor& table = g.require("v.position_embd");
  x = g.add(x, g.look_up(table, g.indices(n)));
  x = g.add(x, g.look_up(table, g.indices(n)));
  return g.linear("mm.input_projection", g.rms(g.norm("v.patch_norm.3", x, NormKind::layer)));
}

Node muse_glimmer(EncoderGraph& g) {
  constexpr int64_t kSparse = 4;  // one layer in so many sees everything, and so does the last
  const int64_t n = g.n_patches();
  const int64_t merge = g.merge(2);
  const Positions2d at = positions_2d(g, n);
  const Node mask = g.floats({n, n, 1, 1});
  Node x = g.add(g.patches(), g.position_table());
  x = g.get_rows(x, g.indices(n));
  const int64_t last = g.n_layer() - 1;
  x = g.transformer(x, n, {.rotate = g.rotation_2d(at.across, at.down), .mask = [mask, last](int64_t layer) {
                             return layer == last || (layer + 1) % kSparse == 0 ? kNoValue : mask;
                           }});
  x = g.get_rows(g.get_rows(x, g.indices(n)), g.indices(n));
  const int64_t unit = merge * merge;
  x = g.cont(g.permute(g.reshape(x, g.n_embd(), unit, n / unit), {1, 0, 2, 3}));
  x = g.reshape(x, g.n_embd() * unit, n / unit);
  x = g.map(g.linear("mm.0", x));
  return g.linear("mm.2", g.map(g.linear("mm.1", x)));
}

Node step3vl(EncoderGraph& g) {
  const Positions2d at = positions_2d(g, g.n_patches());
  const Node image = g.patches();
  Node x = g.transformer(image, g.n_patches(), {.rotate = g.rotation_2d(at.across, at.down)}, g.position_table());
  x = g.permute(x, {1, 0, 2, 3});
  x = g.cont(x, {g.columns(), g.rows(), g.n_embd(), 1});
  for (const std::string_view name : {"mm.0", "mm.1"}) {
    x = g.conv_2d(name, x, 2, 1);
    const Tensor* bias = g.find_bias(name);
    if (bias == nullptr) continue;
    const std::array<int64_t, 4> shape = g.layout(x).ne;
    x = g.add(g.cont(g.transpose(g.reshape(x, shape[0] * shape[1], shape[2]))), *bias);
    x = g.reshape(g.cont(g.transpose(x)), shape[0], shape[1], shape[2]);
  }
  x = g.cont(g.permute(g.reshape(x, g.ne(x, 0) * g.ne(x, 1), g.ne(x, 2), g.ne(x, 3)), {1, 0, 2, 3}));
  return g.linear("mm.model.fc", x);
}

constexpr std::array<EncoderKind, 13> kKinds{{
    {"pixtral", pixtral},
    {"lightonocr", pixtral},
    {"deepseek4v", deepseek4v},
    {"llama4", llama4},
    {"kimivl", kimivl},
    {"kimik25", kimik25},
    {"paddleocr", paddleocr},
    {"dots_ocr", dots_ocr},
    {"dots3note_v", dots_ocr},
    {"gemma4v", gemma4v},
    {"gemma4uv", gemma4uv},
    {"muse-glimmer", muse_glimmer},
    {"step3vl", step3vl},
}};

}  // namespace

std::span<const EncoderKind> kinds_of_rotated_images() { return kKinds; }

}  // namespace pshard
