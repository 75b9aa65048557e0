// Attention as llama.cpp's graph computes it: projections, rope, cache writes, the attention itself, the output projection.
#include <algorithm>
#include <string>
#include <utility>

#include "model/gpu_attention.hpp"
#include "model/graph.hpp"

namespace pshard {

namespace {

constexpr int64_t kTile = 64;  // tokens and cells that llama.cpp's fused attention on a CPU takes at once, from as many tokens on

struct Heads {
  Node query = kNoValue;
  Node key = kNoValue;
  Node value = kNoValue;
};

bool slides(const Graph& g) { return g.parameters().window > 0; }

int64_t cells(const Graph& g) { return slides(g) ? g.pass().n_kv_window : g.pass().n_kv; }

GraphInput one_of(const Graph& g, GraphInput full, GraphInput window) { return slides(g) ? window : full; }

// Hadamard rotation of what goes into a quantised cache: rows of queries, keys and values where the head size is a multiple of 64.
bool is_rotated(const Graph& g, const DataType& type, int64_t head_dim) {
  return !g.pass().pshard_runtime && type.block_elements > 1 && head_dim > 0 && head_dim % 64 == 0;
}

Node rotate(Graph& g, Node x, int64_t size, GraphInput matrix) {
  const Node rotation = g.input(matrix, Layout::packed({size, size, 1, 1}));
  const std::array<int64_t, 4> shape = g.layout(x).ne;
  const std::array<int64_t, 4> by_block{size, g.layout(x).n_elements() / size, 1, 1};
  const bool is_packed = g.layout(x) == Layout::packed(shape);
  const Node rows = is_packed ? g.reshape(x, by_block) : g.cont(x, by_block);
  return g.reshape(g.mul_mat(rotation, rows), shape);
}

Node rotate_key(Graph& g, Node x) {
  const int64_t head_dim = g.parameters().head_dim_k;
  if (!is_rotated(g, g.pass().type_k, head_dim)) return x;
  int64_t size = 64;
  while (head_dim % (2 * size) == 0) size *= 2;
  return rotate(g, x, size, one_of(g, GraphInput::key_rotation, GraphInput::key_rotation_window));
}

Node rotate_value(Graph& g, Node x) {
  if (!is_rotated(g, g.pass().type_v, g.parameters().head_dim_v)) return x;
  return rotate(g, x, 64, one_of(g, GraphInput::value_rotation, GraphInput::value_rotation_window));
}

Node mask(Graph& g, int64_t n_kv, int64_t n_streams) {
  const DataType type = g.pass().flash_attn ? kF16 : kF32;
  return g.input(one_of(g, GraphInput::mask, GraphInput::mask_window),
                 Layout::packed({n_kv, g.n_tokens() / n_streams, 1, n_streams}, type));
}

// Where rows of K and V go; with a transposed V every element has an index of its own.
Node key_cells(Graph& g) {
  return g.input(one_of(g, GraphInput::key_cells, GraphInput::key_cells_window), Layout::packed({g.n_tokens(), 1, 1, 1}, kI64));
}

int64_t widest_value(const Graph& g) {
  int64_t widest = 0;
  for (const LayerParameters& layer : g.hyperparameters().layers) widest = std::max(widest, layer.n_head_kv * layer.head_dim_v);
  return widest;
}

Node value_cells(Graph& g) {
  const int64_t each = g.pass().transposed_v() ? widest_value(g) : 1;
  return g.input(one_of(g, GraphInput::value_cells, GraphInput::value_cells_window), Layout::packed({g.n_tokens() * each, 1, 1, 1}, kI64));
}

// The attention itself. K and V lie in the cache, or (encoders) are `key` and `value`, [head size, heads, tokens] like the query.
class Attention {
 public:
  Attention(Graph& g, int64_t key_dim, int64_t value_dim) : g_(g), key_dim_(key_dim), value_dim_(value_dim) {}

  // Instead of the mask that all layers share.
  void use_mask(Node mask) { own_mask_ = mask; }
  // Added to the scores, which no fused attention does.
  void use_bias(Node bias) { bias_ = bias; }

  // `latent` decompresses the values of latent attention.
  Node over_cache(Node query, const Tensor* latent) {
    const Pass& pass = g_.pass();
    const LayerParameters& p = g_.parameters();
    n_kv_ = cells(g_);
    n_streams_ = pass.n_streams;
    const int64_t n = n_kv_ * n_streams_;
    const int64_t k_row = p.n_head_kv * p.head_dim_k;
    const int64_t v_row = p.n_head_kv * p.head_dim_v;
    k_bytes_ = pass.type_k.row_bytes(k_row) * n;
    v_bytes_ = pass.type_v.row_bytes(v_row) * n;
    k_ = heads_of_cells(pass.type_k, p.head_dim_k, k_row);
    v_ = p.head_dim_v > 0 ? heads_of_cells(pass.type_v, p.head_dim_v, v_row) : heads_of_cells(pass.type_k, value_dim_, k_row);
    g_.in(Group::cache);
    Node out = pass.flash_attn && bias_ == kNoValue ? fused(query, latent) : unfused(query, latent);
    g_.expand(out);
    return out;
  }

  Node without_cache(const Heads& heads) {
    g_.in(Group::attention);
    n_kv_ = g_.ne(heads.key, 2);
    const Node query = by_head(heads.query);
    const Node key = by_head(heads.key);
    const Node value = by_head(heads.value);
    Node out = kNoValue;
    if (g_.pass().flash_attn && bias_ == kNoValue) {
      const Node k = g_.fresh(OpKind::copy, {key}, Layout::packed(g_.layout(key).ne, kF16));
      const Node v = g_.fresh(OpKind::copy, {value}, Layout::packed(g_.layout(value).ne, kF16));
      out = g_.fresh(OpKind::attention, {query, k, v, mask_of_cells()}, result());
      count(out);
      out = flat(out);
    } else {
      Node scores = soft_max(g_.mul_mat(key, query));
      out = joined(g_.mul_mat(g_.cont(g_.transpose(value)), scores));
    }
    g_.expand(out);
    return out;
  }

 private:
  // The cells of a cache that holds `row` elements of each, as one matrix of `width` columns per head and stream.
  [[nodiscard]] Layout heads_of_cells(const DataType& type, int64_t width, int64_t row) const {
    const int64_t n_head = std::max<int64_t>(g_.parameters().n_head_kv, 1);
    const int64_t cell = type.row_bytes(row);
    return {
        .type = type, .ne = {width, n_kv_, n_head, n_streams_}, .nb = {type.block_bytes, cell, type.row_bytes(row / n_head), cell * n_kv_}};
  }
  static Layout transposed(Layout x) {
    std::swap(x.ne[0], x.ne[1]);
    std::swap(x.nb[0], x.nb[1]);
    return x;
  }
  // A cache that is kept transposed has room for the widest layer's values in every stream.
  [[nodiscard]] Layout kept_transposed(const Layout& values) const {
    Layout kept = Layout::packed(transposed(values).ne, values.type);
    kept.nb[3] = values.type.row_bytes(n_kv_) * widest_value(g_);
    return kept;
  }
  // Fused attention takes no f32: what lies in the cache as such is cast first.
  int32_t for_fused(int32_t operand, Layout& read, int64_t& n_bytes) {
    if (read.type.id != kF32.id) return operand;
    const Node cast = g_.fresh(OpKind::copy, {operand}, Layout::packed(read.ne, kF16));
    g_.operation(cast).cache_bytes = n_bytes;
    g_.operation(cast).cache[operand == kCache ? 0 : 1] = cache_operand(read);
    read = g_.layout(cast);
    n_bytes = read.n_bytes();
    return cast;
  }

  // [head size, heads, tokens] as one matrix per head and stream.
  Node by_head(Node x) {
    const Layout in = g_.layout(x);
    const int64_t n = in.ne[2] / n_streams_;
    return g_.permute(g_.view(x, {in.ne[0], in.ne[1], n, n_streams_}, {in.nb[1], in.nb[2], in.nb[2] * n}), {0, 2, 1, 3});
  }
  [[nodiscard]] Layout result() const {
    return Layout::packed({value_dim_, g_.parameters().n_head, g_.n_tokens() / n_streams_, n_streams_});
  }
  Node flat(Node x) { return g_.reshape(x, {g_.ne(x, 0) * g_.ne(x, 1), g_.ne(x, 2) * g_.ne(x, 3), 1, 1}); }
  // Heads side by side again.
  Node joined(Node x) {
    const Node rows = g_.permute(x, {0, 2, 1, 3});
    const Node joined = g_.cont(rows, {g_.ne(rows, 0) * g_.ne(rows, 1), g_.ne(rows, 2) * g_.ne(rows, 3), 1, 1});
    g_.operation(joined).joins_heads = true;
    return joined;
  }
  void count(Node out) {
    Operation& operation = g_.operation(out);
    operation.n = value_dim_ * g_.parameters().n_head;
    operation.k = n_kv_;
    operation.m = g_.n_tokens();
    operation.host_only = !gpu_attends(g_.parameters(), key_dim_, value_dim_);
    operation.flop =
        2.0 * static_cast<double>((key_dim_ + value_dim_) * g_.parameters().n_head) * static_cast<double>(g_.n_tokens() * n_kv_);
  }

  // Values that are a part of the keys (latent attention) have their type.
  [[nodiscard]] const DataType& value_type() const { return g_.parameters().head_dim_v > 0 ? g_.pass().type_v : g_.pass().type_k; }

  Node mask_of_cells() { return own_mask_ != kNoValue ? own_mask_ : mask(g_, n_kv_, n_streams_); }

  // Share of the pairs of a token and a cell that are not masked: a token sees itself and what lies before it, as far as a window reaches.
  // A tile of tokens skips only the tiles of cells that all of its tokens do not see; a token that goes by itself skips each cell.
  [[nodiscard]] double unmasked() const {
    const Pass& pass = g_.pass();
    const int64_t n_tokens = g_.n_tokens() / n_streams_;
    const int64_t first = pass.n_filled - n_tokens;
    if (pass.n_filled == 0 || first < 0 || !g_.traits().causal) return 1.0;
    const int64_t tile = n_tokens >= kTile && attends_together(pass.type_k.id, value_type().id) ? kTile : 1;
    const int64_t window = slides(g_) ? g_.parameters().window : pass.n_filled;
    int64_t pairs = 0;
    for (int64_t token = 0; token < n_tokens; token += tile) {
      const int64_t n = std::min(tile, n_tokens - token);
      const int64_t last_cell = (first + token + n + tile - 1) / tile * tile;
      const int64_t first_cell = std::max<int64_t>(first + token + 1 - window, 0) / tile * tile;
      pairs += n * std::min(last_cell - first_cell, n_kv_);
    }
    return static_cast<double>(pairs) / static_cast<double>(n_tokens * n_kv_);
  }

  Node fused(Node query, const Tensor* latent) {
    const Pass& pass = g_.pass();
    const LayerParameters& p = g_.parameters();
    const Tensor* sinks = g_.find("attn_sinks");
    const int32_t keys = for_fused(kCache, k_, k_bytes_);
    const int32_t values = for_fused(kCacheV, v_, v_bytes_);
    Node out = g_.fresh(OpKind::attention, {by_head(query), keys, values, mask_of_cells(), sinks != nullptr ? kWeight : kNoValue}, result(),
                        sinks);
    count(out);
    Operation& operation = g_.operation(out);
    operation.host_only |= !gpu_attends_to(k_.type) || !gpu_attends_to(v_.type);
    operation.key_type = k_.type.id;
    operation.value_type = v_.type.id;
    operation.unmasked = unmasked();
    operation.weight_decides = pass.pshard_runtime;
    operation.cache_bytes = k_bytes_ + v_bytes_;
    operation.cache_value_bytes = v_bytes_;
    if (keys == kCache) operation.cache[0] = cache_operand(k_);
    if (values == kCacheV) operation.cache[1] = cache_operand(v_);
    const int64_t elements = n_kv_ * n_streams_ * p.n_head_kv;
    int64_t unused = 0;
    int64_t& scratch = pass.pshard_runtime ? unused : g_.value(out).gpu_scratch_bytes;
    if (k_.type.id != kF16.id) scratch += elements * key_dim_ * kF16.block_bytes;
    const bool own_values = p.head_dim_v > 0;
    const int64_t of_values = elements * value_dim_ * kF16.block_bytes;
    if (own_values && v_.type.id != kF16.id) scratch += of_values;
    if (!own_values && v_.type.id != kF16.id && !pass.pshard_runtime) g_.value(out).gpu_scratch_of_copies = of_values;
    if (latent != nullptr) out = g_.cont(g_.permute(g_.mul_mat(*latent, g_.permute(out, {0, 2, 1, 3})), {0, 2, 1, 3}));
    return flat(out);
  }

  Node soft_max(Node scores) {
    if (g_.traits().attention_softcap > 0.0) {
      for (int i = 0; i < 3; ++i) scores = g_.map(scores);  // scale, tanh, scale
    }
    if (bias_ != kNoValue) scores = g_.add(scores, bias_);
    const Tensor* sinks = g_.find("attn_sinks");
    const Node weights =
        g_.element_wise({scores, mask_of_cells(), sinks != nullptr ? kWeight : kNoValue}, Layout::packed(g_.layout(scores).ne), sinks);
    if (sinks != nullptr) g_.operation(weights).group = Group::attention;
    return weights;
  }

  // A product with what lies in the cache: `rows` rows per head of the right operand's length.
  Node cache_product(int64_t rows, Node right, int32_t operand, int64_t cache_bytes, const Layout& read) {
    const std::array<int64_t, 4> ne = g_.layout(right).ne;
    const Node product = g_.fresh(OpKind::attention_kq, {operand, right}, Layout::packed({rows, ne[1], ne[2], ne[3]}));
    Operation& operation = g_.operation(product);
    operation.n = rows;
    operation.k = ne[0];
    operation.m = g_.n_tokens();
    operation.flop = 2.0 * static_cast<double>(rows * ne[0]) * static_cast<double>(ne[1] * ne[2] * ne[3]);
    operation.cache_bytes = cache_bytes;
    operation.cache[operand == kCache ? 0 : 1] = cache_operand(read);
    return product;
  }

  Node unfused(Node query, const Tensor* latent) {
    Node scores = soft_max(cache_product(n_kv_, by_head(query), kCache, k_bytes_, k_));
    Node out = kNoValue;
    if (g_.pass().transposed_v() && g_.parameters().head_dim_v > 0) {
      out = cache_product(value_dim_, scores, kCacheV, v_bytes_, kept_transposed(v_));
    } else {
      const Node values = g_.fresh(OpKind::copy, {kCacheV}, Layout::packed(transposed(v_).ne, v_.type));
      g_.value(values).gpu_scratch_bytes = cache_operand(g_.layout(values)).gpu_padding_bytes;
      g_.operation(values).cache_bytes = g_.parameters().head_dim_v > 0 ? v_bytes_ : k_bytes_;
      g_.operation(values).cache[1] = cache_operand(transposed(v_));
      out = g_.mul_mat(values, scores);
      g_.operation(out).m = g_.n_tokens();
    }
    if (latent != nullptr) out = g_.mul_mat(*latent, out);
    return joined(out);
  }

  Graph& g_;
  int64_t key_dim_;
  int64_t value_dim_;
  int64_t n_kv_ = 0;
  int64_t n_streams_ = 1;
  Node own_mask_ = kNoValue;
  Node bias_ = kNoValue;
  int64_t k_bytes_ = 0;
  int64_t v_bytes_ = 0;
  Layout k_;  // what lies in the cache, as it is read
  Layout v_;
};

void store_key(Graph& g, Node key) {
  const LayerParameters& p = g.parameters();
  const Layout in = g.layout(key);
  const Node rows = g.view(key, {in.ne[0] * in.ne[1], in.ne[2], 1, 1}, {in.nb[2], in.nb[2] * in.ne[2], in.nb[2] * in.ne[2]});
  const DataType& type = g.pass().type_k;
  const bool in_kernel_of_rope = type.id == kF16.id || type.id == kF32.id;
  g.store({rows, key_cells(g)}, type.row_bytes(p.n_head_kv * p.head_dim_k) * g.n_tokens(), in_kernel_of_rope ? Step::write : Step::other);
}

void store_value(Graph& g, Node value) {
  const LayerParameters& p = g.parameters();
  const Layout in = g.layout(value);
  const int64_t width = in.ne[0] * in.ne[1];
  Node rows = kNoValue;
  if (!g.pass().transposed_v()) {
    rows = g.view(value, {width, in.ne[2], 1, 1}, {in.nb[2], in.nb[2] * in.ne[2], in.nb[2] * in.ne[2]});
  } else {
    const bool gaps = in.type.row_bytes(width) != in.nb[2];
    rows = gaps ? g.cont(value, {width, in.ne[2], 1, 1}) : g.reshape(value, {width, in.ne[2], 1, 1});
    const int64_t widest = widest_value(g);
    if (width < widest) rows = g.fresh(OpKind::copy, {rows}, Layout::packed({widest, in.ne[2], 1, 1}));
    rows = g.reshape(rows, {1, g.layout(rows).n_elements(), 1, 1});
  }
  g.store({rows, value_cells(g)}, g.pass().type_v.row_bytes(p.n_head_kv * p.head_dim_v) * g.n_tokens());
}

// Windows and recurrent hybrids with windows build query, key and value in this order, others query, value and key.
bool has_windows(const Graph& g) {
  const auto& layers = g.hyperparameters().layers;
  return std::any_of(layers.begin(), layers.end(), [](const LayerParameters& layer) { return layer.window > 0; });
}

// What the distance between a token and a cell adds to the scores of each head (T5): a row of a small table, of the layer itself or of the
// first, for every pair.
Node bias_by_distance(Graph& g, int64_t n_kv) {
  const Tensor* own = g.find("attn_rel_b");
  const Tensor* table = own != nullptr ? own : g.find_in_first_layer("attn_rel_b");
  if (table == nullptr) return kNoValue;
  const int64_t n = g.n_tokens();
  const Node classes = g.reshape(g.input(GraphInput::distances, Layout::packed({n_kv, n, 1, 1}, kI32)), {n_kv * n, 1, 1, 1});
  const Node rows = g.fresh(OpKind::get_rows, {kWeight, classes}, Layout::packed({table->shape[0], n_kv * n, 1, 1}), table);
  g.operation(rows).group = Group::attention;
  g.operation(rows).offload_rows = 0;
  g.operation(rows).is_first_layers = own == nullptr;
  return g.cont(g.permute(g.reshape(rows, {table->shape[0], n_kv, n, 1}), {2, 0, 1, 3}));
}

Node attend(Graph& g, Heads heads) {
  const LayerParameters& p = g.parameters();
  heads.query = rotate_key(g, heads.query);
  heads.key = rotate_key(g, heads.key);
  heads.value = rotate_value(g, heads.value);
  g.expand(heads.query);
  const bool key_first = has_windows(g);
  g.expand(key_first ? heads.key : heads.value);
  g.expand(key_first ? heads.value : heads.key);
  store_key(g, heads.key);
  store_value(g, heads.value);
  Attention attention(g, p.head_dim_k, p.head_dim_v);
  attention.use_bias(bias_by_distance(g, cells(g)));
  return rotate_value(g, attention.over_cache(heads.query, nullptr));
}

// [width, tokens] as heads.
Node split_heads(Graph& g, Node x, int64_t head_dim) { return g.reshape(x, {head_dim, g.ne(x, 0) / head_dim, g.n_tokens(), 1}); }

struct Projections {
  Node query = kNoValue;
  Node key = kNoValue;
  Node value = kNoValue;
};

Node clamped(Graph& g, Node x) { return g.traits().clamped_qkv ? g.map(x) : x; }

// A norm over all heads at once, before they are taken apart.
bool norms_all_heads(const Graph& g, std::string_view name, int64_t width) {
  const Tensor* weight = g.find(name);
  return g.traits().joined_heads && weight != nullptr && weight->shape[0] == width;
}

Node norm_and_split(Graph& g, Node x, std::string_view norm_name, int64_t head_dim) {
  return split_heads(g, norms_all_heads(g, norm_name, g.ne(x, 0)) ? g.norm(norm_name, x) : x, head_dim);
}

// Query, key and value as heads: three projections, or parts of one.
Projections project_heads(Graph& g, Node normed) {
  const LayerParameters& p = g.parameters();
  const int64_t n = g.n_tokens();
  const int64_t q_dim = p.head_dim_k * (g.traits().gated_attention ? 2 : 1);  // the gate comes with the query
  Projections parts;
  if (g.find("attn_qkv") == nullptr) {
    parts.query = clamped(g, g.project("attn_q", normed));
    parts.key = clamped(g, g.project("attn_k", normed));
    parts.value = g.traits().norms_values && g.find("attn_v") == nullptr ? parts.key : clamped(g, g.project("attn_v", normed));
  } else {
    const Node all = clamped(g, g.project("attn_qkv", normed));
    const int64_t row = g.layout(all).nb[1];
    const auto part = [&](int64_t head_dim, int64_t heads) {
      return g.traits().joined_heads ? g.cont(g.slice(all, head_dim * heads))
                                     : g.view(all, {head_dim, heads, n, 1}, {head_dim * kActivationBytes, row, row * n});
    };
    parts.query = part(q_dim, p.n_head);
    parts.key = part(p.head_dim_k, p.n_head_kv);
    parts.value = part(p.head_dim_v, p.n_head_kv);
    if (!g.traits().joined_heads) return parts;
  }
  parts.query = norm_and_split(g, parts.query, "attn_q_norm", q_dim);
  parts.key = norm_and_split(g, parts.key, "attn_k_norm", p.head_dim_k);
  parts.value = split_heads(g, parts.value, p.head_dim_v);
  return parts;
}

// A norm over the head's width, or over all heads at once.
Node norm_heads(Graph& g, std::string_view name, Node x) {
  const Tensor* weight = g.find(name);
  const std::array<int64_t, 4> ne = g.layout(x).ne;
  if (norms_all_heads(g, name, ne[0] * ne[1])) return x;  // done
  if (weight == nullptr || weight->shape[0] == ne[0]) return g.norm(name, x);
  return g.reshape(g.norm(name, g.reshape(x, {ne[0] * ne[1], ne[2], 1, 1})), ne);
}

Node prepare_head(Graph& g, std::string_view norm_name, Node x) {
  const bool roped = g.parameters().uses_rope;
  const bool norm_last = g.traits().norm_behind_rope;
  if (!norm_last) x = norm_heads(g, norm_name, x);
  if (roped) x = g.rope(x);
  if (norm_last) x = norm_heads(g, norm_name, x);
  if (g.traits().norm_without_weight && roped) x = g.rms(x);
  return x;
}

// By one gate for each element, or for each head.
Node gated(Graph& g, Node x, Node gate) {
  if (g.ne(x, 0) == g.ne(gate, 0)) return g.mul(x, gate);
  const int64_t heads = g.ne(gate, 0);
  const Node by_head = g.reshape(x, {g.ne(x, 0) / heads, heads, g.n_tokens(), 1});
  return g.reshape(g.mul(by_head, g.reshape(gate, {1, heads, g.n_tokens(), 1})), g.layout(x).ne);
}

// Queries alone: keys and values are in another layer's cache.
Node attend_to_shared(Graph& g, Node normed) {
  const LayerParameters& p = g.parameters();
  const Tensor* all = g.find("attn_qkv");
  Node query = all == nullptr ? g.project("attn_q", normed) : g.cont(g.slice(g.project("attn_qkv", normed), p.head_dim_k * p.n_head));
  query = rotate_key(g, prepare_head(g, "attn_q_norm", split_heads(g, query, p.head_dim_k)));
  g.expand(query);
  return rotate_value(g, Attention(g, p.head_dim_k, p.head_dim_v).over_cache(query, nullptr));
}

Node build_heads_attention(Graph& g, Node normed) {
  const LayerParameters& p = g.parameters();
  const int64_t n = g.n_tokens();
  g.in(Group::attention);
  if (p.shared_cache >= 0) {
    const Node attended = attend_to_shared(g, normed);
    g.in(Group::attention);
    return g.project("attn_output", attended);
  }
  const Projections parts = project_heads(g, normed);
  Heads heads{.query = parts.query, .key = parts.key, .value = parts.value};
  Node gate = kNoValue;
  if (g.traits().gated_attention) {
    const Layout both = g.layout(parts.query);
    const auto half = [&] { return g.view(parts.query, {p.head_dim_k, p.n_head, n, 1}, {both.nb[1], both.nb[2], both.nb[3]}); };
    heads.query = half();
    gate = half();
  }
  heads.query = prepare_head(g, "attn_q_norm", heads.query);
  if (g.traits().scaled_query) heads.query = g.map(heads.query);
  heads.key = prepare_head(g, "attn_k_norm", heads.key);
  if (g.traits().norms_values) heads.value = g.rms(heads.value);
  const Temperature temperature = g.traits().temperature;
  if (temperature == Temperature::all || (temperature == Temperature::unrotated && !p.uses_rope)) {
    heads.query = g.mul(heads.query, g.input(GraphInput::attention_scale, Layout::packed({1, 1, n, 1})));
  }
  Node out = kNoValue;
  if (g.traits().causal) {
    out = attend(g, heads);
  } else {
    g.expand(heads.query);
    g.expand(heads.key);
    g.expand(heads.value);
    Attention attention(g, p.head_dim_k, p.head_dim_v);
    attention.use_bias(bias_by_distance(g, n));
    out = attention.without_cache(heads);
  }
  g.in(Group::attention);
  out = g.norm("attn_sub_norm", out);
  if (const Tensor* weight = g.find("attn_gate")) out = gated(g, out, g.activate(g.mul_mat(*weight, normed)));
  if (gate != kNoValue) {
    const Node open = g.activate(g.cont(gate, {p.head_dim_k * p.n_head, n, 1, 1}));
    out = g.mul(out, open);
  }
  return g.project(g.find("attn_o") != nullptr ? "attn_o" : "attn_output", out);
}

// Multi-head latent attention. Absorbed: one cached row of latent plus rope dimensions serves all heads. Otherwise K and V are expanded.
Node build_latent_attention(Graph& g, Node normed) {
  const Hyperparameters& h = g.hyperparameters();
  const LayerParameters& p = g.parameters();
  const int64_t n = g.n_tokens();
  const int64_t rope_dim = h.rope_dim;
  const int64_t latent = h.kv_lora_rank;
  g.in(Group::attention);
  Node query = normed;
  if (g.find("attn_q_a") != nullptr) {
    const Node compressed_query = g.norm("attn_q_a_norm", g.project("attn_q_a", normed));
    if (p.indexer_dim > 0) {
      g.select_cells(choose_cells(g, normed, compressed_query));
      g.in(Group::attention);
    }
    query = g.project("attn_q_b", compressed_query);
  } else {
    query = g.project("attn_q", normed);
  }
  const Tensor* decompress = g.find("attn_v_b");
  const int64_t head_dim = g.ne(query, 0) / p.n_head;
  query = g.reshape(query, {head_dim, p.n_head, n, 1});
  const Layout q = g.layout(query);
  const auto of_query = [&](int64_t width) { return g.view(query, {width, p.n_head, n, 1}, {q.nb[1], q.nb[2], q.nb[3]}); };

  const Node compressed = g.project("attn_kv_a_mqa", normed);
  const int64_t row = g.layout(compressed).nb[1];
  const auto roped = [&](Node x) { return p.uses_rope ? g.rope(x) : x; };
  const Node key_rope = roped(g.view(compressed, {rope_dim, 1, n, 1}, {row, row, row * n}));
  const Node kv = g.norm("attn_kv_a_norm", g.view(compressed, {latent, n, 1, 1}, {row, row * n, row * n}));
  Node out = kNoValue;
  if (decompress != nullptr) {
    const Node query_rope = roped(of_query(rope_dim));
    const Node absorbed = g.permute(g.mul_mat(g.require("attn_k_b"), g.permute(of_query(head_dim - rope_dim), {0, 2, 1, 3})), {0, 2, 1, 3});
    const Node value = g.reshape(kv, {latent, 1, n, 1});
    Heads heads{.query = g.concat(absorbed, query_rope, 0), .key = g.concat(value, key_rope, 0), .value = value};
    if (g.traits().temperature == Temperature::all) {
      heads.query = g.mul(heads.query, g.input(GraphInput::attention_scale, Layout::packed({1, 1, n, 1})));
    }
    g.expand(heads.query);
    g.expand(heads.value);
    g.expand(heads.key);
    store_key(g, heads.key);
    Attention attention(g, latent + rope_dim, latent);
    if (p.is_selective) attention.use_mask(only_cells(g, mask(g, g.pass().n_kv, g.pass().n_streams), g.selected_cells()));
    out = attention.over_cache(heads.query, decompress);
  } else {
    const Node expanded = g.project("attn_kv_b", kv);
    const int64_t nope = p.head_dim_k - rope_dim;
    const int64_t each = (nope + p.head_dim_v) * kActivationBytes;
    const auto of_heads = [&](int64_t width) {
      return g.view(expanded, {width, p.n_head, n, 1}, {each, each * p.n_head, each * p.n_head * n});
    };
    const Node key_nope = of_heads(nope);
    const Node value = g.cont(of_heads(p.head_dim_v));
    const Node key = g.concat(key_nope, g.repeat(key_rope, {rope_dim, p.n_head, n, 1}), 0);
    out = attend(g, {.query = roped(query), .key = key, .value = value});
  }
  g.in(Group::attention);
  if (const Tensor* weight = g.find("attn_gate")) {  // one for each head
    const Node gate = g.map(g.reshape(g.mul_mat(*weight, normed), {1, p.n_head, n, 1}));
    const int64_t width = g.ne(out, 0);
    out = g.cont(g.mul(g.reshape(out, {width / p.n_head, p.n_head, n, 1}), gate), {width, n, 1, 1});
  }
  return g.project("attn_output", out);
}

}  // namespace

Node attend_to_heads(Graph& g, Node query, Node key, Node value) {
  const LayerParameters& p = g.parameters();
  g.expand(query);
  if (g.traits().keeps_cache) store_key(g, key);
  if (g.traits().keeps_cache && value != kNoValue) store_value(g, value);
  Attention attention(g, p.head_dim_k, p.head_dim_v > 0 ? p.head_dim_v : p.head_dim_k);
  return attention.over_cache(query, nullptr);
}

Node build_cross_attention(Graph& g, Node normed) {
  const LayerParameters& p = g.parameters();
  const Hyperparameters& h = g.hyperparameters();
  const int64_t n_encoded = h.n_ctx_train;
  g.in(Group::attention);
  const Node encoded = g.input(GraphInput::encoded, Layout::packed({h.n_embd, n_encoded, 1, 1}));
  const Node query = g.reshape(g.project("cross_attn_q", normed), {p.head_dim_k, p.n_head, g.n_tokens(), 1});
  const Node key = g.reshape(g.project("cross_attn_k", encoded), {p.head_dim_k, p.n_head_kv, n_encoded, 1});
  const Node value = g.reshape(g.project("cross_attn_v", encoded), {p.head_dim_v, p.n_head_kv, n_encoded, 1});
  g.expand(query);
  g.expand(key);
  g.expand(value);
  Attention attention(g, p.head_dim_k, p.head_dim_v);
  const DataType type = g.pass().flash_attn ? kF16 : kF32;
  attention.use_mask(g.input(GraphInput::encoded_mask, Layout::packed({n_encoded, g.n_tokens(), 1, 1}, type)));
  return g.project("cross_attn_o", attention.without_cache({.query = query, .key = key, .value = value}));
}

Node build_attention(Graph& g, Node normed) {
  return g.find("attn_kv_a_mqa") != nullptr ? build_latent_attention(g, normed) : build_heads_attention(g, normed);
}

}  // namespace pshard
