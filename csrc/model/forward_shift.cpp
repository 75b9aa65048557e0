// Layers that mix every token with the one before it (RWKV): a time mix with a recurrent state, then a channel mix or an ordinary FFN. The
// last token's norms are kept beside the state; llama.cpp reads them before the layer before has ended.
#include "model/graph.hpp"

namespace pshard {

namespace {

constexpr int64_t kMixed = 5;  // decay, key, value, receptance, gate

Node by_sequence(Graph& g, Node x) { return g.reshape(x, {g.ne(x, 0), g.n_seq_tokens(), g.pass().n_seqs, 1}); }
Node by_token(Graph& g, Node x) { return g.reshape(x, {g.ne(x, 0), g.n_tokens(), 1, 1}); }

// So many tokens of every sequence.
Node tokens_of(Graph& g, Node x, int64_t n) {
  const Layout all = g.layout(x);
  return g.view(x, {all.ne[0], n, all.ne[2], 1}, {all.nb[1], all.nb[2], all.nb[2] * all.ne[2]});
}

// Each token's predecessor: what the state keeps, then all but the last.
Node shifted(Graph& g, Node kept, Node x) { return g.concat(tokens_of(g, kept, 1), tokens_of(g, x, g.n_seq_tokens() - 1), 1); }

void keep_last(Graph& g, Node last) {
  const int64_t n = g.layout(last).n_elements();
  const Node all = g.view(last, {n, 1, 1, 1}, {n * kActivationBytes, n * kActivationBytes, n * kActivationBytes});
  g.store({all}, n * kActivationBytes);
}

// x, moved towards `difference` by a weight.
Node moved(Graph& g, Node difference, std::string_view weight, Node x) { return g.add(g.mul(difference, g.require(weight)), x); }

struct Mixed {
  Node decay = kNoValue;
  Node key = kNoValue;
  Node value = kNoValue;
  Node receptance = kNoValue;
  Node gate = kNoValue;
};

// Five mixtures, their shares projected from a sixth.
Mixed mix(Graph& g, Node difference, Node x) {
  const int64_t n = g.ne(x, 0);
  const Tensor& down = g.require("time_mix_w1");
  const Tensor& up = g.require("time_mix_w2");
  const Node shares = g.map(g.mul_mat(down, moved(g, difference, "time_mix_lerp_x", x)));  // tanh
  const Node by_mixture = g.cont(g.permute(g.reshape(shares, {down.shape[1] / kMixed, 1, kMixed, g.n_tokens()}), {0, 1, 3, 2}));
  Node all = g.mul_mat(up, by_mixture);
  g.read_as_view(all);
  const auto one = [&] {
    const Layout five = g.layout(all);
    return g.view(all, {n, g.n_tokens(), 1, 1}, {n * kActivationBytes, five.nb[3], five.nb[3]});
  };
  if (g.find("time_mix_lerp_fused") != nullptr) {
    const std::array<int64_t, 4> rows{n, 1, g.n_tokens(), 1};
    all = g.add(g.mul(g.add(all, g.require("time_mix_lerp_fused")), g.reshape(difference, rows)), g.reshape(x, rows));
    return {.decay = one(), .key = one(), .value = one(), .receptance = one(), .gate = one()};
  }
  const auto moved_by = [&](std::string_view weight) { return g.add(g.mul(g.add(one(), g.require(weight)), difference), x); };
  return {.decay = moved_by("time_mix_lerp_w"),
          .key = moved_by("time_mix_lerp_k"),
          .value = moved_by("time_mix_lerp_v"),
          .receptance = moved_by("time_mix_lerp_r"),
          .gate = moved_by("time_mix_lerp_g")};
}

// One recurrence over the heads: outputs for every token with the final state behind them.
Node recur(Graph& g, std::initializer_list<int32_t> operands, int64_t width, const Tensor* weight) {
  const int64_t state = g.parameters().scan_state;
  const Layout result = Layout::packed({width, g.n_tokens() + state / width * g.pass().n_seqs, 1, 1});
  const Node output = g.fresh(OpKind::scan, operands, result, weight);
  g.operation(output).flop = 6.0 * static_cast<double>(state) * static_cast<double>(g.n_tokens());
  g.expand(output);
  const int64_t n = state * g.pass().n_seqs;
  const int64_t bytes = n * kActivationBytes;
  g.store({g.view(output, {n, 1, 1, 1}, {bytes, bytes, bytes})}, bytes);
  return g.view(output, {width * g.n_tokens(), 1, 1, 1}, {bytes, bytes, bytes});
}

Node norm_of_heads(Graph& g, Node x, const std::array<int64_t, 4>& by_head) {
  const std::array<int64_t, 4> rows{by_head[0] * by_head[1], by_head[2], 1, 1};
  if (g.find("time_mix_ln") == nullptr) return g.reshape(x, rows);
  const Node normed = g.reshape(g.fresh(OpKind::elementwise, {g.reshape(x, by_head)}, Layout::packed(by_head)), rows);
  return g.add(g.mul(normed, g.require("time_mix_ln")), *g.find_bias("time_mix_ln"));
}

Node build_time_mix(Graph& g, Node normed, Node before, Node state) {
  const int64_t width = g.ne(normed, 0);
  const int64_t head_dim = g.parameters().scan_state / width;
  const int64_t heads = width / head_dim;
  const int64_t heads_kv = g.require("time_mix_key").shape[1] / head_dim;
  const Tensor* first = g.find("time_mix_first");  // without: gated linear attention, whose heads may share keys (QRWKV)
  const std::array<int64_t, 4> by_head{head_dim, heads, g.n_tokens(), 1};
  g.in(Group::mixer);
  const Mixed mixed = mix(g, by_token(g, g.add(before, normed)), by_token(g, normed));
  const auto of_keys = [&](Node x) {
    if (heads_kv == heads) return g.reshape(x, by_head);
    const Node apart = g.reshape(x, {head_dim, 1, heads_kv, g.n_tokens()});
    return g.reshape(g.repeat(apart, {head_dim, heads / heads_kv, heads_kv, g.n_tokens()}), by_head);
  };
  const Node receptance = g.reshape(g.project("time_mix_receptance", mixed.receptance), by_head);
  Node key = of_keys(g.project("time_mix_key", mixed.key));
  const Node value = of_keys(g.project("time_mix_value", mixed.value));
  const Node gate = g.map(g.project("time_mix_gate", mixed.gate));
  Node decay = g.mul_mat(g.require("time_mix_decay_w2"), g.map(g.mul_mat(g.require("time_mix_decay_w1"), mixed.decay)));
  decay = g.add(decay, g.require("time_mix_decay"));
  for (int i = 0; i < 3; ++i) decay = g.map(decay);  // exp, negate, exp
  decay = g.reshape(decay, by_head);
  if (first == nullptr) key = g.add(key, g.mul(key, decay));
  const Node output = first == nullptr ? recur(g, {key, value, receptance, decay, state}, width, nullptr)
                                       : recur(g, {key, value, receptance, kWeight, decay, state}, width, first);
  g.in(Group::mixer);
  return by_sequence(g, g.project("time_mix_output", g.mul(norm_of_heads(g, output, by_head), gate)));
}

// Out of so many mixtures that share one set of weights.
struct Mixtures {
  Node all = kNoValue;
  int64_t width = 0;
  [[nodiscard]] Node one(Graph& g) const {
    const int64_t row = width * kActivationBytes;
    return g.view(all, {width, g.n_tokens(), 1, 1}, {row, row * g.n_tokens(), row * g.n_tokens()});
  }
};

// Projected through few dimensions, with a bias.
Node low_rank(Graph& g, Node x, std::string_view down, std::string_view up, std::string_view bias) {
  return g.add(g.mul_mat(g.require(up), g.mul_mat(g.require(down), x)), g.require(bias));
}

// RWKV 7: the state is written over by a generalised delta rule; values are mixed with those of the first layer, `first_value`, which that
// layer fills in.
Node build_delta_time_mix(Graph& g, Node normed, Node before, Node state, Node& first_value) {
  const int64_t width = g.ne(normed, 0);
  const int64_t head_dim = g.parameters().scan_state / width;
  const int64_t heads = width / head_dim;
  const std::array<int64_t, 4> by_head{head_dim, heads, g.n_tokens(), 1};
  const bool is_gated = g.find("time_mix_g1") != nullptr;
  g.in(Group::mixer);
  const Tensor& shares = g.require("time_mix_lerp_fused");
  const Node apart = g.repeat(g.add(before, normed), {width, g.n_seq_tokens(), g.pass().n_seqs, is_gated ? 6 : 5});
  const Mixtures mixed{.all = g.add(g.mul(apart, shares), normed), .width = width};
  const auto split = [&](Node x) { return g.reshape(x, by_head); };
  const Node receptance = split(g.project("time_mix_receptance", mixed.one(g)));
  const Node down = g.map(g.mul_mat(g.require("time_mix_w1"), mixed.one(g)));  // tanh
  Node decay = g.add(g.mul_mat(g.require("time_mix_w2"), down), g.require("time_mix_w0"));
  for (int i = 0; i < 3; ++i) decay = g.map(decay);  // sigmoid, scale, exp
  const Node key = g.project("time_mix_key", mixed.one(g));
  const Node value_input = mixed.one(g);
  Node value = g.project("time_mix_value", value_input);
  if (g.parameters().gives_value) {
    first_value = value;
  } else {
    const Node share = g.map(low_rank(g, value_input, "time_mix_v1", "time_mix_v2", "time_mix_v0"));  // sigmoid
    value = g.add(value, g.mul(g.add(first_value, value), share));
  }
  const Node rate = g.map(low_rank(g, mixed.one(g), "time_mix_a1", "time_mix_a2", "time_mix_a0"));
  const Node direction = split(g.mul(key, g.require("time_mix_k_k")));
  const Node unit = g.fresh(OpKind::elementwise, {direction}, Layout::packed(by_head));  // L2 norm
  const Node scaled = g.mul(key, g.require("time_mix_k_a"));
  const Node written = split(g.add(key, g.add(g.mul(rate, scaled), scaled)));
  value = split(value);
  const Node output = recur(g, {receptance, split(decay), written, value, g.map(unit), g.mul(unit, split(rate)), state}, width, nullptr);
  g.in(Group::mixer);
  const Node product = g.mul(g.mul(written, receptance), g.require("time_mix_r_k"));
  g.read_as_view(product);
  const Node bonus = g.reshape(g.mul(value, g.sum_rows(product)), {width, g.n_tokens(), 1, 1});
  Node mix = g.add(norm_of_heads(g, output, by_head), bonus);
  if (is_gated) mix = g.mul(mix, g.mul_mat(g.require("time_mix_g2"), g.map(g.mul_mat(g.require("time_mix_g1"), mixed.one(g)))));
  return by_sequence(g, g.project("time_mix_output", mix));
}

Node build_channel_mix(Graph& g, Node normed, Node before) {
  g.in(Group::norms);
  const Node difference = g.add(before, normed);
  const bool is_gated = g.find("channel_mix_receptance") != nullptr;
  Node receptance = kNoValue;
  if (is_gated) receptance = g.map(g.project("channel_mix_receptance", moved(g, difference, "channel_mix_lerp_r", normed)));
  const Node key = g.map(g.map(g.project("channel_mix_key", moved(g, difference, "channel_mix_lerp_k", normed))));  // ReLU, squared
  const Node value = g.project("channel_mix_value", key);
  return is_gated ? g.mul(receptance, value) : value;
}

}  // namespace

Node build_shifting_layer(Graph& g, Node residual, bool drop_rows, const MixerStates& states, Node& first_value) {
  const Node input = by_sequence(g, residual);
  const int64_t width = g.ne(input, 0);
  const bool mixes_channels = g.find("channel_mix_key") != nullptr;
  const Node kept = g.reshape(states.kept, {width, g.ne(states.kept, 0) / width, g.pass().n_seqs, 1});
  const Node normed = g.norm("attn_norm", input);
  const Node before = shifted(g, kept, normed);
  const bool is_delta = g.find("time_mix_a1") != nullptr;
  const Node mixed = is_delta ? build_delta_time_mix(g, normed, before, states.recurrence, first_value)
                              : build_time_mix(g, normed, before, states.recurrence);
  g.in(Group::norms);
  const auto maybe_dropped = [&](Node x) {
    const Node rows = by_token(g, x);
    return drop_rows ? g.output_rows(rows) : rows;
  };
  if (!mixes_channels) {
    keep_last(g, tokens_of(g, normed, 1));
    const Node middle = maybe_dropped(g.add(mixed, input));
    const Node ffn = build_ffn(g, g.norm("ffn_norm", middle));
    g.in(Group::norms);
    return g.add(ffn, middle);
  }
  const Node middle = g.add(mixed, input);
  const Node second = g.norm("attn_norm_2", middle);
  const Node before_second = shifted(g, kept, second);
  keep_last(g, g.concat(tokens_of(g, normed, 1), tokens_of(g, second, 1), 1));
  const Node output = maybe_dropped(middle);
  const Node rows = maybe_dropped(second);
  const Node ffn = build_channel_mix(g, rows, maybe_dropped(before_second));
  g.in(Group::norms);
  return g.add(ffn, output);
}

}  // namespace pshard
