// Attention as llama.cpp's graph computes it: projections, rope, cache writes, the attention itself, the output projection.
#include <algorithm>

#include "model/block_builder.hpp"

namespace pshard {

namespace {

struct Heads {
  int32_t query = kNoValue;
  int32_t key = kNoValue;
  int32_t value = kNoValue;
  int32_t gate = kNoValue;  // output gate that came with the query projection
  bool fused = false;       // all three are parts of one projection
};

const Tensor* rope_factors(const Model& model) {
  for (const Tensor& tensor : model.embedding()) {
    if (tensor.name.starts_with("rope_f")) return &tensor;
  }
  return nullptr;
}

int32_t rope(BlockBuilder& b, int32_t input, int64_t out_bytes) {
  const int32_t output = b.elementwise(Group::attention, {input, b.positions()}, out_bytes);
  b.last().weight = rope_factors(b.model());
  b.last().weight_decides = false;
  return output;
}

// Hadamard rotation of a quantised cache's rows: llama.cpp rotates queries, keys and values where the head size is a multiple of 64.
int64_t rotation_size(int64_t head_dim, bool smallest) {
  int64_t size = 64;
  while (!smallest && head_dim % (2 * size) == 0) size *= 2;
  return size;
}

int32_t rotate(BlockBuilder& b, Group group, int32_t input, GraphInput rotation, int64_t head_dim) {
  const int64_t size = rotation_size(head_dim, rotation == GraphInput::value_rotation);
  if (b.parameters().window > 0) {
    rotation = rotation == GraphInput::value_rotation ? GraphInput::value_rotation_window : GraphInput::key_rotation_window;
  }
  const int64_t rows = b.bytes_of(input) / kActivationBytes / size;
  const int32_t matrix = b.graph_input(rotation, size * size * kActivationBytes);
  return b.reshape(b.product(group, {input, matrix}, size, size, rows, 1));
}

bool is_rotated(const DataType& type, int64_t head_dim) { return type.block_elements > 1 && head_dim > 0 && head_dim % 64 == 0; }

int64_t cells(const BlockBuilder& b) { return b.parameters().window > 0 ? b.pass().n_kv_window : b.pass().n_kv; }

int32_t mask(BlockBuilder& b) {
  const bool window = b.parameters().window > 0;
  const int64_t n_kv = b.traits().causal ? cells(b) : b.pass().n_tokens;
  const int64_t element = b.pass().flash_attn ? 2 : 4;
  return b.graph_input(window ? GraphInput::mask_window : GraphInput::mask, n_kv * b.pass().n_tokens * element);
}

// Where a row of K or V goes; with a transposed V cache every element has an index of its own.
int32_t cell_indices(BlockBuilder& b, bool value) {
  const bool window = b.parameters().window > 0;
  const bool transposed = value && !b.pass().flash_attn;
  int64_t widest = 1;
  if (transposed) {
    for (const LayerParameters& layer : b.hyperparameters().layers) widest = std::max(widest, layer.n_head_kv * layer.head_dim_v);
  }
  const GraphInput input = value ? (window ? GraphInput::value_cells_window : GraphInput::value_cells)
                                 : (window ? GraphInput::key_cells_window : GraphInput::key_cells);
  return b.graph_input(input, b.pass().n_tokens * widest * 8);
}

int32_t attend_fused(BlockBuilder& b, int32_t query, int64_t n_kv, int64_t k_bytes, int64_t v_bytes, int64_t key_dim, int64_t value_dim) {
  const Pass& pass = b.pass();
  const LayerParameters& p = b.parameters();
  const int32_t output =
      b.fresh(OpKind::attention, Group::cache, {query, mask(b)}, value_dim * p.n_head * pass.n_tokens * kActivationBytes);
  Operation& operation = b.last();
  operation.weight = b.find("attn_sinks");
  operation.weight_decides = false;
  operation.n = value_dim * p.n_head;
  operation.k = n_kv;
  operation.m = pass.n_tokens;
  operation.flop = 2.0 * static_cast<double>((key_dim + value_dim) * p.n_head) * static_cast<double>(pass.n_tokens * n_kv);
  operation.cache_bytes = k_bytes + v_bytes;
  operation.cache_value_bytes = v_bytes;
  const int64_t elements = n_kv * pass.n_streams * p.n_head_kv;
  if (pass.type_k.id != 1) b.value(output).gpu_scratch_bytes += elements * key_dim * 2;
  if (pass.type_v.id != 1 && p.head_dim_v > 0) b.value(output).gpu_scratch_bytes += elements * value_dim * 2;
  return output;
}

int32_t attend_unfused(BlockBuilder& b, int32_t query, int64_t n_kv, int64_t k_bytes, int64_t v_bytes, int64_t key_dim, int64_t value_dim) {
  const Pass& pass = b.pass();
  const LayerParameters& p = b.parameters();
  int32_t transposed = kNoValue;
  if (p.head_dim_v == 0) {  // MLA caches no transposed V
    transposed = b.fresh(OpKind::copy, Group::cache, {}, n_kv * pass.n_streams * value_dim * 2);
    b.last().cache_bytes = k_bytes;
  }
  int32_t kq = b.product(Group::cache, {query}, n_kv, key_dim, pass.n_tokens, p.n_head);
  b.last().cache_bytes = k_bytes;
  const int64_t kq_bytes = b.bytes_of(kq);
  if (b.traits().attention_softcap > 0.0) {
    for (int i = 0; i < 3; ++i) kq = b.elementwise(Group::cache, {kq}, kq_bytes);  // scale, tanh, scale
  }
  const Tensor* sinks = b.find("attn_sinks");
  kq = b.elementwise(sinks == nullptr ? Group::cache : Group::attention, {kq, mask(b)}, kq_bytes, sinks);  // soft-max
  const int32_t kqv = b.product(Group::cache, {transposed, kq}, value_dim, n_kv, pass.n_tokens, p.n_head);
  if (p.head_dim_v > 0) b.last().cache_bytes = v_bytes;
  return kqv;
}

// Over the cache; returns [n_tokens, n_head * value_dim], before the output projection. `decompress` is MLA's V projection per head.
int32_t attend(BlockBuilder& b, int32_t query, int64_t key_dim, int64_t value_dim, const Tensor* decompress) {
  const Pass& pass = b.pass();
  const LayerParameters& p = b.parameters();
  const int64_t n_kv = cells(b);
  const int64_t k_bytes = pass.type_k.row_bytes(p.n_head_kv * p.head_dim_k) * n_kv * pass.n_streams;
  const int64_t v_bytes = pass.type_v.row_bytes(p.n_head_kv * p.head_dim_v) * n_kv * pass.n_streams;
  int32_t output = pass.flash_attn ? attend_fused(b, query, n_kv, k_bytes, v_bytes, key_dim, value_dim)
                                   : attend_unfused(b, query, n_kv, k_bytes, v_bytes, key_dim, value_dim);
  if (decompress != nullptr) output = b.mul_mat(*decompress, output, pass.n_tokens);
  if (!pass.flash_attn) return b.fresh(OpKind::copy, Group::cache, {output}, b.bytes_of(output));
  if (decompress != nullptr) output = b.fresh(OpKind::copy, Group::attention, {output}, b.bytes_of(output));
  return b.reshape(output);
}

// Encoders keep no cache: K and V are used where they were computed.
int32_t attend_without_cache(BlockBuilder& b, const Heads& heads) {
  const Pass& pass = b.pass();
  const LayerParameters& p = b.parameters();
  const int64_t n = pass.n_tokens;
  const int64_t out_bytes = p.n_head * p.head_dim_v * n * kActivationBytes;
  if (pass.flash_attn) {
    const int32_t key = b.fresh(OpKind::copy, Group::attention, {heads.key}, p.n_head_kv * p.head_dim_k * n * 2);
    const int32_t value = b.fresh(OpKind::copy, Group::attention, {heads.value}, p.n_head_kv * p.head_dim_v * n * 2);
    const int32_t output = b.fresh(OpKind::attention, Group::attention, {heads.query, key, value, mask(b)}, out_bytes);
    b.last().flop = 2.0 * static_cast<double>((p.head_dim_k + p.head_dim_v) * p.n_head) * static_cast<double>(n * n);
    return output;
  }
  const int32_t value = b.fresh(OpKind::copy, Group::attention, {heads.value}, p.n_head_kv * p.head_dim_v * n * kActivationBytes);
  int32_t kq = b.product(Group::attention, {heads.key, heads.query}, n, p.head_dim_k, n, p.n_head);
  kq = b.elementwise(Group::attention, {kq, mask(b)}, b.bytes_of(kq));
  const int32_t kqv = b.product(Group::attention, {value, kq}, p.head_dim_v, n, n, p.n_head);
  return b.fresh(OpKind::copy, Group::attention, {kqv}, out_bytes);
}

int32_t query_or_key(BlockBuilder& b, int32_t head, std::string_view norm_name, int64_t bytes) {
  const bool roped = b.parameters().uses_rope;
  head = b.norm(norm_name, head);
  if (roped) head = rope(b, head, bytes);
  if (b.traits().norm_without_weight && roped) head = b.elementwise(Group::attention, {head}, bytes);
  return head;
}

int32_t finish_query(BlockBuilder& b, int32_t query, int64_t bytes) {
  query = query_or_key(b, query, "attn_q_norm", bytes);
  if (b.traits().attention_temperature && !b.parameters().uses_rope) {
    query = b.elementwise(Group::attention, {query, b.graph_input(GraphInput::attention_scale, b.pass().n_tokens * 4)}, bytes);
  }
  return query;
}

void store_heads(BlockBuilder& b, const Heads& heads) {
  const Pass& pass = b.pass();
  const LayerParameters& p = b.parameters();
  b.store(Group::cache, {heads.key, cell_indices(b, false)}, pass.type_k.row_bytes(p.n_head_kv * p.head_dim_k) * pass.n_tokens);
  if (p.head_dim_v == 0) return;
  int32_t value = heads.value;
  const int64_t v_elements = p.n_head_kv * p.head_dim_v * pass.n_tokens;
  if (!pass.flash_attn && heads.fused) {  // rows with gaps are made contiguous first
    value = b.fresh(OpKind::copy, Group::attention, {value}, v_elements * kActivationBytes);
  }
  b.store(Group::cache, {value, cell_indices(b, true)}, pass.type_v.row_bytes(p.n_head_kv * p.head_dim_v) * pass.n_tokens);
}

// The three projections with what is done to them before the cache, in llama.cpp's order: query, value, key; with windows and
// in encoders query, key, value.
class HeadsBuilder {
 public:
  HeadsBuilder(BlockBuilder& b, int32_t normed) : b_(b), normed_(normed) {}

  Heads build() {
    if (b_.find("attn_qkv") != nullptr) {
      heads_.fused = true;
      fused_ = b_.project("attn_qkv", normed_, n_);
    }
    bool key_first = !b_.traits().causal;
    for (const LayerParameters& layer : b_.hyperparameters().layers) key_first = key_first || layer.window > 0;
    query();
    if (key_first) key();
    value();
    if (!key_first) key();
    return heads_;
  }

 private:
  int32_t part(std::string_view name, int64_t n_bytes) { return b_.view(heads_.fused ? fused_ : b_.project(name, normed_, n_), n_bytes); }
  // Contiguous first where it is a part of a fused projection.
  int32_t rotated(int32_t head, const DataType& type, int64_t head_dim, GraphInput rotation, bool contiguous) {
    if (!b_.traits().causal || !is_rotated(type, head_dim)) return head;
    if (!contiguous) head = b_.fresh(OpKind::copy, Group::attention, {head}, b_.bytes_of(head));
    return rotate(b_, Group::attention, head, rotation, head_dim);
  }

  void query() {
    const int64_t n_bytes = p_.n_head * p_.head_dim_k * n_ * kActivationBytes;
    if (b_.traits().gated_attention && !heads_.fused) {  // query and gate come interleaved
      heads_.gate = b_.project("attn_q", normed_, n_);
      heads_.query = finish_query(b_, b_.view(heads_.gate, n_bytes), n_bytes);
    } else {
      heads_.query = finish_query(b_, part("attn_q", n_bytes), n_bytes);
    }
    heads_.query = rotated(heads_.query, b_.pass().type_k, p_.head_dim_k, GraphInput::key_rotation, true);
  }
  void key() {
    const int64_t n_bytes = p_.n_head_kv * p_.head_dim_k * n_ * kActivationBytes;
    heads_.key = query_or_key(b_, part("attn_k", n_bytes), "attn_k_norm", n_bytes);
    heads_.key = rotated(heads_.key, b_.pass().type_k, p_.head_dim_k, GraphInput::key_rotation, true);
  }
  void value() {
    heads_.value = part("attn_v", p_.n_head_kv * p_.head_dim_v * n_ * kActivationBytes);
    heads_.value = rotated(heads_.value, b_.pass().type_v, p_.head_dim_v, GraphInput::value_rotation, !heads_.fused);
  }

  BlockBuilder& b_;
  int32_t normed_;
  int32_t fused_ = kNoValue;
  const LayerParameters& p_ = b_.parameters();
  int64_t n_ = b_.pass().n_tokens;
  Heads heads_;
};

int32_t build_heads_attention(BlockBuilder& b, int32_t normed) {
  const Pass& pass = b.pass();
  const LayerParameters& p = b.parameters();
  const Heads heads = HeadsBuilder(b, normed).build();
  int32_t output = kNoValue;
  if (!b.traits().causal) {
    output = attend_without_cache(b, heads);
  } else {
    store_heads(b, heads);
    output = attend(b, heads.query, p.head_dim_k, p.head_dim_v, nullptr);
    if (is_rotated(pass.type_v, p.head_dim_v)) output = rotate(b, Group::cache, output, GraphInput::value_rotation, p.head_dim_v);
  }
  if (heads.gate != kNoValue) {
    const int64_t n_bytes = b.bytes_of(output);
    int32_t gate = b.fresh(OpKind::copy, Group::attention, {heads.gate}, n_bytes);
    gate = b.elementwise(Group::attention, {gate}, n_bytes);  // sigmoid
    output = b.elementwise(Group::attention, {output, gate}, n_bytes);
  }
  return output;
}

// Multi-head latent attention with the K and V projections absorbed: one cached row of latent plus rope dimensions serves all heads.
int32_t build_latent_attention(BlockBuilder& b, int32_t normed) {
  const Hyperparameters& h = b.hyperparameters();
  const LayerParameters& p = b.parameters();
  const int64_t n = b.pass().n_tokens;
  const int64_t rope_dim = h.rope_dim;
  const int64_t latent = h.kv_lora_rank;
  int32_t query = kNoValue;
  if (b.find("attn_q_a") != nullptr) {
    query = b.norm("attn_q_a_norm", b.project("attn_q_a", normed, n));
    query = b.project("attn_q_b", query, n);
  } else {
    query = b.project("attn_q", normed, n);
  }
  query = b.reshape(query);
  Heads heads;
  const Tensor* decompress = b.find("attn_v_b");
  const bool absorbed = decompress != nullptr;
  if (absorbed) {
    const int32_t no_rope = b.mul_mat(b.require("attn_k_b"), query, n);
    const int32_t roped = rope(b, query, p.n_head * rope_dim * n * kActivationBytes);
    heads.query = b.fresh(OpKind::copy, Group::attention, {no_rope, roped}, p.n_head * (latent + rope_dim) * n * kActivationBytes);
  } else {
    heads.query = rope(b, query, b.bytes_of(query));
  }
  const int32_t compressed = b.project("attn_kv_a_mqa", normed, n);
  const Tensor& norm_weight = b.require("attn_kv_a_norm");
  const int64_t latent_bytes = latent * n * kActivationBytes;
  int32_t kv = b.fresh(OpKind::elementwise, Group::attention, {compressed}, latent_bytes);
  kv = b.elementwise(Group::attention, {kv}, latent_bytes, &norm_weight);
  if (absorbed) {
    const int32_t key_rope = rope(b, compressed, rope_dim * n * kActivationBytes);
    heads.value = kv;
    heads.key = b.fresh(OpKind::copy, Group::attention, {kv, key_rope}, (latent + rope_dim) * n * kActivationBytes);
    store_heads(b, heads);
    return attend(b, heads.query, latent + rope_dim, latent, decompress);
  }
  const int32_t expanded = b.project("attn_kv_b", kv, n);
  heads.value = b.fresh(OpKind::copy, Group::attention, {expanded}, p.n_head * p.head_dim_v * n * kActivationBytes);
  const int32_t key_rope = rope(b, compressed, rope_dim * n * kActivationBytes);
  const int32_t repeated = b.fresh(OpKind::copy, Group::attention, {key_rope}, p.n_head * rope_dim * n * kActivationBytes);
  heads.key = b.fresh(OpKind::copy, Group::attention, {expanded, repeated}, p.n_head * p.head_dim_k * n * kActivationBytes);
  store_heads(b, heads);
  return attend(b, heads.query, p.head_dim_k, p.head_dim_v, nullptr);
}

}  // namespace

int32_t build_attention(BlockBuilder& b, int32_t normed) {
  return b.find("attn_kv_a_mqa") != nullptr ? build_latent_attention(b, normed) : build_heads_attention(b, normed);
}

int32_t build_attention_output(BlockBuilder& b, int32_t attended, int64_t rows) { return b.project("attn_output", attended, rows); }

}  // namespace pshard
