// Recurrent mixers. Their state is read at the start and written behind the scan; every sequence of the micro-batch has one.
#include <algorithm>

#include "model/graph.hpp"

namespace pshard {

namespace {

// llama.cpp clears one unused state before it reads one, and moves those of the sequences that are not in the batch behind it. Where all
// are in it, as in a reservation, both do nothing, but they hold their places.
void clear_unused_state(Graph& g) { g.store({}, 0); }

void move_other_states(Graph& g, int64_t elements) {
  const Node none = g.fresh(OpKind::get_rows, {kCache, g.other_state_rows()}, Layout::packed({elements, 0, 1, 1}));
  g.operation(none).cache[0].n_bytes = elements * g.pass().n_seqs * kActivationBytes;
  g.store({none}, 0);
}

}  // namespace

Node load_state(Graph& g, int64_t elements) {
  const Group outer = g.group();
  g.in(Group::cache);
  clear_unused_state(g);
  const Node state = g.fresh(OpKind::get_rows, {kCache, g.state_rows()}, Layout::packed({elements, g.pass().n_seqs, 1, 1}));
  g.operation(state).cache_bytes = g.layout(state).n_bytes();
  g.operation(state).cache[0].n_bytes = g.layout(state).n_bytes();
  g.expand(state);
  move_other_states(g, elements);
  g.in(outer);
  return state;
}

namespace {

void store_state(Graph& g, Node from, int64_t elements) { g.store({from}, elements * g.pass().n_seqs * kActivationBytes); }

// [width, tokens] as [width, tokens of one sequence, sequences].
Node by_sequence(Graph& g, Node x) { return g.reshape(x, {g.ne(x, 0), g.n_seq_tokens(), g.pass().n_seqs, 1}); }
Node by_token(Graph& g, Node x) { return g.reshape(x, {g.ne(x, 0), g.n_tokens(), 1, 1}); }

// `width` elements of every row, as `width / size` heads of `size`.
Node heads_of(Graph& g, Node x, int64_t size, int64_t heads) {
  const Layout in = g.layout(x);
  return g.view(x, {size, heads, in.ne[1], in.ne[2]}, {size * kActivationBytes, in.nb[1], in.nb[2]});
}

Node convolve(Graph& g, Node joined, const Tensor& kernel) {
  const int64_t channels = g.ne(joined, 1);
  const Node output = g.fresh(OpKind::scan, {joined, kWeight}, Layout::packed({channels, g.n_seq_tokens(), g.pass().n_seqs, 1}), &kernel);
  g.operation(output).flop = 2.0 * static_cast<double>(kernel.shape[0] * channels * g.n_tokens());
  g.operation(output).host_only = channels % kConvolvedAtOnce != 0;
  g.operation(output).step = Step::convolve;
  return output;
}

// Causal convolution over a few tokens: the state's columns before the new ones. Returns what is convolved, [columns, channels, sequences];
// its last columns are the new state.
Node join_state(Graph& g, Node x, Node state, const Tensor& kernel) {
  const int64_t channels = g.ne(x, 0);
  const int64_t kept = kernel.shape[0] - 1;
  const Node before = g.reshape(state, {kept, channels, g.pass().n_seqs, 1});
  const Node joined = g.concat(before, g.transpose(x), 0);
  const Layout all = g.layout(joined);
  store_state(g, g.view(joined, {kept, channels, g.pass().n_seqs, 1}, {all.nb[1], all.nb[2], all.nb[3]}), kept * channels);
  return joined;
}

// One selective scan: outputs for every token with the final state behind them.
Node scan(Graph& g, Recurrence recurrence, std::initializer_list<int32_t> operands, int64_t inner, const Tensor* weight) {
  const int64_t state = g.parameters().scan_state;
  const Node output = g.fresh(OpKind::scan, operands, Layout::packed({inner * g.n_tokens() + state * g.pass().n_seqs, 1, 1, 1}), weight);
  Operation& operation = g.operation(output);
  operation.recurrence = recurrence;
  operation.host_only = weight != nullptr && weight->host_only;
  operation.cache_bytes = state * g.pass().n_seqs * kActivationBytes;
  operation.cache[0].n_bytes = operation.cache_bytes;
  // per token and state element: decay, outer product, addition, read-out
  operation.flop = 6.0 * static_cast<double>(state) * static_cast<double>(g.n_tokens());
  return output;
}

// A scan that reads the state where it is.
Node scan_of_state(Graph& g, Recurrence recurrence, std::initializer_list<int32_t> operands, int64_t inner, const Tensor& decay,
                   bool views_decay = false) {
  clear_unused_state(g);
  const Node scanned = scan(g, recurrence, operands, inner, &decay);
  if (views_decay) g.read_as_view(scanned);
  g.expand(scanned);
  g.in(Group::cache);
  move_other_states(g, g.parameters().scan_state);
  g.in(Group::mixer);
  return scanned;
}

void store_final_state(Graph& g, Node scanned) {
  const int64_t n = g.parameters().scan_state * g.pass().n_seqs;
  const int64_t bytes = n * kActivationBytes;
  store_state(g, g.view(scanned, {n, 1, 1, 1}, {bytes, bytes, bytes}), g.parameters().scan_state);
}

// Norms over the time steps and both projections of Mamba, where the file has them (Jamba, FalconMamba); then without a gap.
Node norm_or_pack(Graph& g, std::string_view name, Node x) {
  if (g.find(name) != nullptr) return g.norm(name, x);
  return g.traits().norms_time_step ? g.rms(x) : g.cont(x);
}

Node build_mamba(Graph& g, Node normed, Node conv_state) {
  const Hyperparameters& h = g.hyperparameters();
  const int64_t inner = h.ssm_inner_size;
  const int64_t n_state = h.ssm_state_size;
  const int64_t t = g.n_seq_tokens();
  const int64_t s = g.pass().n_seqs;
  if (conv_state == kNoValue) conv_state = load_state(g, g.parameters().conv_state);
  g.in(Group::mixer);
  const Node xz = g.project("ssm_in", by_sequence(g, normed));
  const Node z = g.slice(xz, inner);
  const Tensor& kernel = g.require("ssm_conv1d");
  Node x = convolve(g, join_state(g, g.slice(xz, inner), conv_state, kernel), kernel);
  if (const Tensor* bias = g.find_bias("ssm_conv1d")) x = g.add(x, *bias);
  x = g.activate(x);
  const Node x_db = g.project("ssm_x", x);
  const Layout parts = g.layout(x_db);
  const auto state_part = [&] { return g.view(x_db, {n_state, 1, t, s}, {n_state * kActivationBytes, parts.nb[1], parts.nb[2]}); };
  Node dt = g.slice(x_db, h.ssm_time_step_rank);
  Node b = state_part();
  Node c = state_part();
  const bool has_norms = g.traits().norms_time_step || g.find("ssm_dt_norm") != nullptr;
  dt = norm_or_pack(g, "ssm_dt_norm", dt);
  if (has_norms) {
    b = norm_or_pack(g, "ssm_b_norm", b);
    c = norm_or_pack(g, "ssm_c_norm", c);
  }
  dt = g.project("ssm_dt", dt);
  const Node by_head = g.reshape(x, {1, inner, t, s});
  const Node scanned = scan_of_state(g, Recurrence::mamba, {kCache, by_head, dt, kWeight, b, c, g.state_rows()}, inner, g.require("ssm_a"));
  store_final_state(g, scanned);
  const int64_t row = inner * kActivationBytes;
  const Node skip = g.mul(x, g.require("ssm_d"));
  const Node y = g.add(g.view(scanned, {inner, t, s, 1}, {row, row * t, row * t * s}), skip);
  return by_token(g, g.project("ssm_out", g.glu(g.cont(z), y)));
}

Node build_mamba2(Graph& g, Node normed, Node conv_state) {
  const Hyperparameters& h = g.hyperparameters();
  const int64_t inner = h.ssm_inner_size;
  const int64_t heads = h.ssm_time_step_rank;
  const int64_t head_dim = inner / heads;
  const int64_t t = g.n_seq_tokens();
  const int64_t s = g.pass().n_seqs;
  if (conv_state == kNoValue) conv_state = load_state(g, g.parameters().conv_state);
  g.in(Group::mixer);
  const Node zxbcdt = by_sequence(g, g.project("ssm_in", normed));
  const Node z = heads_of(g, zxbcdt, head_dim, heads);
  const Tensor& kernel = g.require("ssm_conv1d");
  const int64_t channels = inner + 2 * h.ssm_group_count * h.ssm_state_size;
  Node xbc = convolve(g, join_state(g, g.slice(zxbcdt, channels), conv_state, kernel), kernel);
  if (const Tensor* bias = g.find_bias("ssm_conv1d")) xbc = g.add(xbc, *bias);
  xbc = g.activate(xbc);
  const Node x = heads_of(g, xbc, head_dim, heads);
  const Node b = heads_of(g, xbc, h.ssm_state_size, h.ssm_group_count);
  const Node c = heads_of(g, xbc, h.ssm_state_size, h.ssm_group_count);
  Node dt = g.cont(g.slice(zxbcdt, heads));
  if (const Tensor* bias = g.find_bias("ssm_dt")) dt = g.add(dt, *bias);
  const Node scanned = scan_of_state(g, Recurrence::mamba2, {kCache, x, dt, kWeight, b, c, g.state_rows()}, inner, g.require("ssm_a"));
  store_final_state(g, scanned);
  const int64_t row = inner * kActivationBytes;
  const Node skip = g.mul(x, g.require("ssm_d"));
  const Node output = g.view(scanned, {head_dim, heads, t, s}, {head_dim * kActivationBytes, row, row * t});
  Node y = g.glu(g.cont(z), g.add(output, skip));
  if (g.find("ssm_norm") != nullptr) y = g.norm("ssm_norm", g.reshape(y, {inner / h.ssm_group_count, h.ssm_group_count, t, s}));
  return g.project("ssm_out", g.reshape(y, {inner, g.n_tokens(), 1, 1}));
}

// PLaMo 2: gate and input come interleaved by head, time steps and projections as Mamba's.
Node build_mamba_heads(Graph& g, Node normed, Node conv_state) {
  const Hyperparameters& h = g.hyperparameters();
  const int64_t inner = h.ssm_inner_size;
  const int64_t heads = h.ssm_time_step_rank;
  const int64_t head_dim = inner / heads;
  const int64_t n_state = h.ssm_state_size;
  const int64_t t = g.n_seq_tokens();
  const int64_t s = g.pass().n_seqs;
  if (conv_state == kNoValue) conv_state = load_state(g, g.parameters().conv_state);
  g.in(Group::mixer);
  const Node both = g.cont(g.permute(g.project("ssm_in", by_sequence(g, normed)), {0, 2, 1, 3}), {2 * head_dim, heads, t, s});
  const Tensor& kernel = g.require("ssm_conv1d");
  const Node input = g.cont(g.slice(both, head_dim), {inner, t, s, 1});
  const Node z = g.slice(both, head_dim);
  const Node convolved = g.activate(convolve(g, join_state(g, input, conv_state, kernel), kernel));
  const Node projected = g.project("ssm_x", convolved);
  const int64_t dt_dim = g.ne(projected, 0) - 2 * n_state;
  const Node b = g.norm("ssm_b_norm", g.slice(projected, n_state));
  const Node c = g.norm("ssm_c_norm", g.slice(projected, n_state));
  const Node dt = g.project("ssm_dt", g.norm("ssm_dt_norm", g.slice(projected, dt_dim)));
  const int64_t row = inner * kActivationBytes;
  const Node x = g.view(convolved, {head_dim, heads, t, s}, {head_dim * kActivationBytes, row, row * t});
  const auto by_group = [&](Node y) { return g.reshape(y, {n_state, 1, t, s}); };
  const Node scanned = scan_of_state(g, Recurrence::mamba2, {kCache, x, dt, kWeight, by_group(b), by_group(c), g.state_rows()}, inner,
                                     g.require("ssm_a"), true);
  store_final_state(g, scanned);
  const Node skip = g.mul(x, g.require("ssm_d"));
  g.read_as_view(skip);
  const Node y = g.add(g.view(scanned, {head_dim, heads, t, s}, {head_dim * kActivationBytes, row, row * t}), skip);
  return by_token(g, g.project("ssm_out", g.reshape(g.glu(g.cont(z), y), {inner, t, s, 1})));
}

// Query, key, value and gate of one projection, interleaved by key head.
struct Interleaved {
  Node qkv = kNoValue;
  Node z = kNoValue;
};

Interleaved project_interleaved(Graph& g, Node normed) {
  const Hyperparameters& h = g.hyperparameters();
  const int64_t t = g.n_seq_tokens();
  const int64_t s = g.pass().n_seqs;
  const int64_t key = h.ssm_state_size;
  const int64_t value = h.ssm_inner_size / h.ssm_group_count;
  const Node mixed = g.reshape(g.project("ssm_in", normed), {2 * key + 2 * value, h.ssm_group_count, t, s});
  const auto part = [&](int64_t width) { return g.cont(g.slice(mixed, width), {width * h.ssm_group_count, t, s, 1}); };
  const Node z = g.cont(g.slice(mixed, value));
  const Node query_and_key = g.concat(part(key), part(key), 0);
  return {.qkv = g.concat(query_and_key, part(value), 0), .z = z};
}

Node build_gated_delta(Graph& g, Node normed) {
  const Hyperparameters& h = g.hyperparameters();
  const int64_t heads = h.ssm_time_step_rank;
  const int64_t key_heads = h.ssm_group_count;
  const int64_t key_dim = h.ssm_state_size;
  const int64_t value_dim = h.ssm_inner_size / heads;
  const int64_t t = g.n_seq_tokens();
  const int64_t s = g.pass().n_seqs;
  g.in(Group::mixer);
  g.expand(normed);
  Interleaved parts;
  if (g.find("attn_qkv") != nullptr) {
    parts.qkv = by_sequence(g, g.project("attn_qkv", normed));
    parts.z = g.project("attn_gate", normed);
  } else {
    parts = project_interleaved(g, normed);
  }
  Node alpha = kNoValue;
  Node beta = kNoValue;
  if (g.find("ssm_ba") != nullptr) {
    const Node both = g.reshape(g.project("ssm_ba", normed), {2 * heads / key_heads, key_heads, t, s});
    beta = g.map(g.cont(g.slice(both, heads / key_heads)));  // sigmoid
    alpha = g.cont(g.slice(both, heads / key_heads), {heads, t, s, 1});
  } else {
    beta = g.map(g.reshape(g.project("ssm_beta", normed), {1, heads, t, s}));
    alpha = g.reshape(g.project("ssm_alpha", normed), {heads, t, s, 1});
  }
  alpha = g.activate(g.add(alpha, *g.find_bias("ssm_dt")));
  alpha = g.reshape(g.mul(alpha, g.require("ssm_a")), {1, heads, t, s});
  beta = g.reshape(beta, {1, heads, t, s});
  const Tensor& kernel = g.require("ssm_conv1d");
  const Node joined = join_state(g, parts.qkv, load_state(g, g.parameters().conv_state), kernel);
  const Node state = g.reshape(load_state(g, g.parameters().scan_state), {value_dim, value_dim, heads, s});
  const Node convolved = g.activate(convolve(g, joined, kernel));
  const Layout all = g.layout(convolved);
  const auto heads_from = [&](int64_t size, int64_t n) {
    return g.view(convolved, {size, n, t, s}, {size * kActivationBytes, all.nb[1], all.nb[2]});
  };
  const auto unit_heads = [&] {
    const Node unit = g.scale(g.rms(heads_from(key_dim, key_heads)));  // L2 norm
    if (key_heads == heads || !g.traits().repeats_key_heads) return unit;
    const Node spread = g.repeat(g.reshape(unit, {key_dim, 1, key_heads, t * s}), {key_dim, heads / key_heads, key_heads, t * s});
    return g.reshape(spread, {key_dim, heads, t, s});
  };
  const Node query = unit_heads();
  const Node key = unit_heads();
  const Node value = heads_from(value_dim, heads);
  const Node scanned = scan(g, Recurrence::delta_net, {query, key, value, alpha, beta, state}, h.ssm_inner_size, nullptr);
  g.operation(scanned).cache_bytes = 0;  // the state came in as a value
  store_final_state(g, scanned);
  const int64_t row = h.ssm_inner_size * kActivationBytes;
  Node output = g.view(scanned, {value_dim, heads, t, s}, {value_dim * kActivationBytes, row, row * t});
  output = g.norm("ssm_norm", output);
  const Node open = g.activate(g.reshape(parts.z, {value_dim, heads, t, s}));
  output = g.reshape(g.mul(output, open), {h.ssm_inner_size, t, s, 1});
  return by_token(g, g.project("ssm_out", output));
}

// What is convolved of query, key or value: its part of the state lies beside those of the other two.
Node convolve_part(Graph& g, Node x, Node states, const Tensor& kernel) {
  const int64_t channels = g.ne(x, 0);
  const int64_t kept = kernel.shape[0] - 1;
  const int64_t row = kept * kActivationBytes;
  const Node before = g.view(states, {kept, channels, g.pass().n_seqs, 1}, {row, g.layout(states).nb[1], g.layout(states).nb[2]});
  const Node joined = g.concat(before, g.transpose(by_sequence(g, x)), 0);
  const Layout all = g.layout(joined);
  store_state(g, g.view(joined, {kept, channels, g.pass().n_seqs, 1}, {all.nb[1], all.nb[2], all.nb[3]}), kept * channels);
  const Node convolved = convolve(g, joined, kernel);
  g.read_as_view(convolved);
  return g.activate(by_token(g, g.reshape(convolved, {channels, g.n_tokens(), 1, 1})));
}

// The gated delta rule with a decay for every channel; query, key and value are convolved apart.
Node build_channel_delta(Graph& g, Node normed, Node early_state) {
  const int64_t head_dim = g.require("ssm_norm").shape[0];
  const int64_t heads = g.require("ssm_a").shape[1];
  const int64_t inner = heads * head_dim;
  const int64_t t = g.n_seq_tokens();
  const int64_t s = g.pass().n_seqs;
  g.in(Group::mixer);
  if (early_state == kNoValue) g.expand(normed);
  const Node states = early_state != kNoValue ? early_state : load_state(g, g.parameters().conv_state);
  Node normed_rows = normed;
  const Node fused = g.find("attn_qkv") != nullptr ? g.project("attn_qkv", normed) : kNoValue;
  const auto part = [&](std::string_view name, std::string_view kernel) {
    const Node x = fused != kNoValue ? g.cont(g.slice(fused, inner)) : g.project(name, normed);
    return g.reshape(convolve_part(g, x, states, g.require(kernel)), {head_dim, heads, t, s});
  };
  const Node query = part("attn_q", "ssm_conv1d_q");
  const Node key = part("attn_k", "ssm_conv1d_k");
  const Node value = part("attn_v", "ssm_conv1d_v");
  // Through few dimensions and a softplus (Kimi), or one product and a scaled sigmoid behind the factors (Ling 3).
  const bool is_low_rank = g.find("ssm_f_b") != nullptr;
  const auto maybe_low_rank = [&](std::string_view first, std::string_view second) {
    const Node projected = g.project(first, normed_rows);
    return is_low_rank ? g.project(second, projected) : projected;
  };
  Node decay = g.add(maybe_low_rank("ssm_f_a", "ssm_f_b"), *g.find_bias("ssm_dt"));
  if (is_low_rank) decay = g.activate(decay);
  decay = g.mul(g.reshape(decay, {head_dim, heads, g.n_tokens(), 1}), g.require("ssm_a"));
  g.read_as_view(decay);
  if (!is_low_rank) decay = g.map(g.map(decay));
  decay = g.reshape(decay, {head_dim, heads, t, s});
  const Node beta = g.map(g.reshape(g.project("ssm_beta", normed), {1, heads, t, s}));
  const Node state = g.reshape(load_state(g, g.parameters().scan_state), {head_dim, head_dim, heads, s});
  const auto unit = [&](Node x) { return g.scale(g.rms(x)); };  // L2 norm
  const Node scanned = scan(g, Recurrence::delta_net, {unit(query), unit(key), value, decay, beta, state}, inner, nullptr);
  g.operation(scanned).cache_bytes = 0;  // the state came in as a value
  store_final_state(g, scanned);
  const int64_t row = inner * kActivationBytes;
  const Node output = g.cont(g.view(scanned, {head_dim, heads, t, s}, {head_dim * kActivationBytes, row, row * t}));
  if (is_low_rank) normed_rows = by_token(g, by_sequence(g, normed));
  const Node gate = maybe_low_rank("ssm_g_a", "ssm_g_b");
  const std::array<int64_t, 4> by_head{head_dim, heads, g.n_tokens(), 1};
  const Node gated = g.mul(g.norm("ssm_norm", g.reshape(output, by_head)), g.activate(g.reshape(gate, by_head)));
  return g.project("attn_output", g.cont(gated, {inner, g.n_tokens(), 1, 1}));
}

Node build_short_convolution(Graph& g, Node normed, Node conv_state) {
  const int64_t n_embd = g.hyperparameters().n_embd;
  g.in(Group::mixer);
  const Node bcx = g.project("shortconv.in_proj", by_sequence(g, normed));
  const Node b = g.slice(bcx, n_embd);
  const Node c = g.slice(bcx, n_embd);
  const Node x = g.slice(bcx, n_embd);
  const Tensor& kernel = g.require("shortconv.conv");
  const Node convolved = convolve(g, join_state(g, g.mul(b, x), conv_state, kernel), kernel);
  return by_token(g, g.project("shortconv.out_proj", g.mul(c, convolved)));
}

// Queries see the batch's own keys and values, each pair with its decay, and what the state has summed up of those before.
Node build_lightning(Graph& g, Node normed, Node loaded) {
  const int64_t inner = g.require("attn_norm_2").shape[0];
  const int64_t head_dim = g.parameters().scan_state / inner;
  const int64_t heads = inner / head_dim;
  const int64_t t = g.n_seq_tokens();
  const int64_t s = g.pass().n_seqs;
  g.in(Group::mixer);
  const Node input = g.reshape(normed, {g.ne(normed, 0), t, 1, s});
  const Node all = g.reshape(g.map(g.project("attn_qkv", input)), {3 * head_dim, heads, t, s});  // SiLU
  const Layout parts = g.layout(all);
  const auto part = [&] { return g.view(all, {head_dim, heads, t, s}, {parts.nb[1], parts.nb[2], parts.nb[3]}); };
  const Node query = part();
  const Node key = part();
  const Node value = part();
  const Node state = g.reshape(loaded, {head_dim, head_dim, heads, s});
  const Node slopes = g.input(GraphInput::decay_slopes, Layout::packed({heads, 1, 1, 1}));
  const auto decay = [&](GraphInput of, std::array<int64_t, 4> ne) { return g.map(g.map(g.input(of, Layout::packed(ne)))); };  // scale, exp
  const Node of_queries = decay(GraphInput::decay_of_queries, {1, heads, t, s});
  const Node of_keys = decay(GraphInput::decay_of_keys, {1, heads, t, s});
  const Node of_pairs = decay(GraphInput::decay_of_pairs, {t, t, heads, s});
  const auto by_head = [&](Node x) { return g.permute(x, {0, 2, 1, 3}); };
  const auto by_channel = [&](Node x) { return g.cont(g.permute(x, {1, 2, 0, 3})); };
  const Node before = g.mul_mat(state, by_head(g.mul(query, of_queries)));
  const Node scores = g.mul(g.mul_mat(by_head(key), by_head(query)), of_pairs);
  const Node values = by_channel(value);
  const Node attended = g.add(before, g.mul_mat(values, scores));
  g.expand(attended);
  const Node left = g.mul(state, g.reshape(g.map(g.map(g.map(slopes))), {1, 1, heads, 1}));  // two scales, exp
  const Node summed = g.add(left, g.mul_mat(by_channel(g.mul(key, of_keys)), values));
  store_state(g, summed, g.parameters().scan_state);
  const Node rows = g.reshape(g.cont(by_head(attended)), {inner, t, 1, s});
  const Node gate = g.map(g.project("attn_gate", input));  // sigmoid
  return by_token(g, g.project("attn_output", g.mul(gate, g.norm("attn_norm_2", rows, Group::mixer))));
}

}  // namespace

bool reads_state_early(const LayerParameters& layer) {
  constexpr std::array kEarly{Mixer::mamba,       Mixer::mamba2,   Mixer::mamba_heads, Mixer::short_convolution,
                              Mixer::token_shift, Mixer::lightning};
  if (layer.mixer == Mixer::channel_delta) return !layer.norms_before_state;
  return layer.n_head == 0 && std::find(kEarly.begin(), kEarly.end(), layer.mixer) != kEarly.end();
}

bool is_put_off(const Layer& layer) {
  if (layer.parameters.mixer != Mixer::none) return false;
  const auto has_experts = [](const Tensor& tensor) { return local_name(tensor.name).starts_with("ffn_gate_inp"); };
  return std::none_of(layer.tensors.begin(), layer.tensors.end(), has_experts);
}

Node build_mixer(Graph& g, Node normed, Node early_state) {
  switch (g.parameters().mixer) {
    case Mixer::mamba:
      return build_mamba(g, normed, early_state);
    case Mixer::mamba2:
      return build_mamba2(g, normed, early_state);
    case Mixer::mamba_heads:
      return build_mamba_heads(g, normed, early_state);
    case Mixer::gated_delta:
      return build_gated_delta(g, normed);
    case Mixer::channel_delta:
      return build_channel_delta(g, normed, early_state);
    case Mixer::short_convolution:
      return build_short_convolution(g, normed, early_state);
    case Mixer::lightning:
      return build_lightning(g, normed, early_state);
    case Mixer::token_shift:  // a layer of its own
    case Mixer::attention:
    case Mixer::none:
      break;
  }
  return normed;
}

}  // namespace pshard
