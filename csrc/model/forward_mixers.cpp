// Recurrent mixers. Their state is read at the start and written behind the scan; every sequence of the micro-batch has one.
#include "model/block_builder.hpp"

namespace pshard {

namespace {

constexpr Group kMixer = Group::mixer;

// The rows of the state that the micro-batch's sequences use.
int32_t load_state(BlockBuilder& b, int64_t elements) {
  const int64_t bytes = elements * b.pass().n_seqs * kActivationBytes;
  const int32_t rows = b.graph_input(GraphInput::state_rows, b.pass().n_seqs * 4);
  const int32_t state = b.fresh(OpKind::get_rows, Group::cache, {rows}, bytes);
  b.last().cache_bytes = bytes;
  return state;
}

void store_state(BlockBuilder& b, int32_t from, int64_t elements) {
  b.store(Group::cache, {from}, elements * b.pass().n_seqs * kActivationBytes);
}

// Causal convolution over a few tokens: the state's columns before the new ones. Returns channels x tokens.
int32_t convolve(BlockBuilder& b, int32_t input, int32_t state, const Tensor& kernel, int64_t channels) {
  const Pass& pass = b.pass();
  const int64_t width = kernel.shape[0];
  const int64_t padded = channels * ((width - 1) * pass.n_seqs + pass.n_tokens) * kActivationBytes;
  const int32_t joined = b.fresh(OpKind::copy, kMixer, {state, input}, padded);
  store_state(b, joined, (width - 1) * channels);
  const int32_t output = b.fresh(OpKind::scan, kMixer, {joined}, channels * pass.n_tokens * kActivationBytes, &kernel);
  b.last().offload_rows = pass.n_tokens;
  b.last().flop = 2.0 * static_cast<double>(width * channels * pass.n_tokens);
  return output;
}

// One selective scan: outputs for every token with the final state behind them.
int32_t scan(BlockBuilder& b, std::initializer_list<int32_t> inputs, int64_t inner, int64_t state_elements, const Tensor* weight) {
  const Pass& pass = b.pass();
  const int64_t bytes = (inner * pass.n_tokens + state_elements * pass.n_seqs) * kActivationBytes;
  const int32_t output = b.fresh(OpKind::scan, kMixer, inputs, bytes, weight);
  b.last().offload_rows = 1;  // its output is one flat row, so op-offload never takes it
  b.last().cache_bytes = state_elements * pass.n_seqs * kActivationBytes;
  // per token and state element: decay, outer product, addition, read-out
  b.last().flop = 6.0 * static_cast<double>(state_elements) * static_cast<double>(pass.n_tokens);
  return output;
}

int32_t build_mamba(BlockBuilder& b, int32_t residual) {
  const Hyperparameters& h = b.hyperparameters();
  const int64_t n = b.pass().n_tokens;
  const int64_t inner_bytes = h.ssm_inner_size * n * kActivationBytes;
  const Tensor& kernel = b.require("ssm_conv1d");
  const int32_t conv_state = load_state(b, b.parameters().conv_state);
  const int32_t normed = b.norm("attn_norm", residual);
  const int32_t xz = b.project("ssm_in", normed, n);
  int32_t x = convolve(b, xz, conv_state, kernel, h.ssm_inner_size);
  if (const Tensor* bias = b.find_bias("ssm_conv1d")) x = b.elementwise(kMixer, {x}, inner_bytes, bias);
  x = b.elementwise(kMixer, {x}, inner_bytes);  // SiLU
  const int32_t x_db = b.project("ssm_x", x, n);
  int32_t dt = b.fresh(OpKind::copy, kMixer, {x_db}, h.ssm_time_step_rank * n * kActivationBytes);
  dt = b.project("ssm_dt", dt, n);
  const int32_t scanned = scan(b, {x, dt, x_db, b.graph_input(GraphInput::state_rows, b.pass().n_seqs * 4)}, h.ssm_inner_size,
                               b.parameters().scan_state, b.find("ssm_a"));
  store_state(b, scanned, b.parameters().scan_state);
  const int32_t z = b.fresh(OpKind::copy, kMixer, {xz}, inner_bytes);
  const int32_t skip = b.elementwise(kMixer, {x}, inner_bytes, b.find("ssm_d"));
  const int32_t y = b.elementwise(kMixer, {b.view(scanned, inner_bytes), skip}, inner_bytes);
  const int32_t gated = b.fresh(OpKind::elementwise, kMixer, {z, y}, inner_bytes);
  return b.reshape(b.project("ssm_out", gated, n));
}

int32_t build_mamba2(BlockBuilder& b, int32_t residual) {
  const Hyperparameters& h = b.hyperparameters();
  const int64_t n = b.pass().n_tokens;
  const int64_t inner_bytes = h.ssm_inner_size * n * kActivationBytes;
  const int64_t channels = h.ssm_inner_size + 2 * h.ssm_group_count * h.ssm_state_size;
  const Tensor& kernel = b.require("ssm_conv1d");
  const int32_t conv_state = load_state(b, b.parameters().conv_state);
  const int32_t normed = b.norm("attn_norm", residual);
  const int32_t zxbcdt = b.project("ssm_in", normed, n);
  int32_t xbc = convolve(b, zxbcdt, conv_state, kernel, channels);
  if (const Tensor* bias = b.find_bias("ssm_conv1d")) xbc = b.elementwise(kMixer, {xbc}, b.bytes_of(xbc), bias);
  xbc = b.elementwise(kMixer, {xbc}, b.bytes_of(xbc));  // SiLU
  int32_t dt = b.fresh(OpKind::copy, kMixer, {zxbcdt}, h.ssm_time_step_rank * n * kActivationBytes);
  dt = b.elementwise(kMixer, {dt}, b.bytes_of(dt), b.find_bias("ssm_dt"));
  const int32_t scanned = scan(b, {xbc, dt, b.graph_input(GraphInput::state_rows, b.pass().n_seqs * 4)}, h.ssm_inner_size,
                               b.parameters().scan_state, b.find("ssm_a"));
  store_state(b, scanned, b.parameters().scan_state);
  const int32_t z = b.fresh(OpKind::copy, kMixer, {zxbcdt}, inner_bytes);
  const int32_t skip = b.fresh(OpKind::elementwise, kMixer, {xbc}, inner_bytes, b.find("ssm_d"));
  const int32_t y = b.elementwise(kMixer, {b.view(scanned, inner_bytes), skip}, inner_bytes);
  int32_t gated = b.fresh(OpKind::elementwise, kMixer, {z, y}, inner_bytes);
  gated = b.norm("ssm_norm", b.reshape(gated));
  return b.project("ssm_out", gated, n);
}

int32_t build_gated_delta(BlockBuilder& b, int32_t residual) {
  const Hyperparameters& h = b.hyperparameters();
  const int64_t n = b.pass().n_tokens;
  const int64_t value_bytes = h.ssm_inner_size * n * kActivationBytes;
  const int64_t key_bytes = h.ssm_state_size * h.ssm_group_count * n * kActivationBytes;
  const int64_t heads_bytes = h.ssm_time_step_rank * n * kActivationBytes;
  const int64_t channels = h.ssm_inner_size + 2 * h.ssm_group_count * h.ssm_state_size;
  const Tensor& kernel = b.require("ssm_conv1d");
  const int32_t normed = b.norm("attn_norm", residual);
  const int32_t conv_state = load_state(b, b.parameters().conv_state);
  int32_t qkv = kNoValue;
  int32_t z = kNoValue;
  if (b.find("attn_qkv") != nullptr) {
    qkv = b.project("attn_qkv", normed, n);
  } else {  // one projection holds z too, interleaved by key head
    const int32_t mixed = b.project("ssm_in", normed, n);
    const int32_t query = b.fresh(OpKind::copy, kMixer, {mixed}, key_bytes);
    const int32_t key = b.fresh(OpKind::copy, kMixer, {mixed}, key_bytes);
    const int32_t joined = b.fresh(OpKind::copy, kMixer, {query, key}, 2 * key_bytes);
    const int32_t value = b.fresh(OpKind::copy, kMixer, {mixed}, value_bytes);
    qkv = b.fresh(OpKind::copy, kMixer, {joined, value}, 2 * key_bytes + value_bytes);
    z = b.fresh(OpKind::copy, kMixer, {mixed}, value_bytes);
  }
  int32_t convolved = convolve(b, qkv, conv_state, kernel, channels);
  const int32_t state = load_state(b, b.parameters().scan_state);
  convolved = b.elementwise(kMixer, {convolved}, b.bytes_of(convolved));  // SiLU
  const bool repeats = h.ssm_group_count != h.ssm_time_step_rank;
  const auto unit_heads = [&] {
    int32_t unit = b.fresh(OpKind::elementwise, kMixer, {convolved}, key_bytes);  // L2 norm
    return repeats ? b.fresh(OpKind::copy, kMixer, {unit}, value_bytes) : unit;
  };
  const int32_t query = unit_heads();
  const int32_t key = unit_heads();
  const int32_t ba = b.project(b.find("ssm_ba") != nullptr ? "ssm_ba" : "ssm_alpha", normed, n);
  int32_t alpha = b.fresh(OpKind::copy, kMixer, {ba}, heads_bytes);
  alpha = b.elementwise(kMixer, {alpha}, heads_bytes, b.find_bias("ssm_dt"));
  alpha = b.elementwise(kMixer, {alpha}, heads_bytes);  // softplus
  alpha = b.elementwise(kMixer, {alpha}, heads_bytes, b.find("ssm_a"));
  const int32_t beta_source = b.find("ssm_beta") != nullptr ? b.project("ssm_beta", normed, n) : ba;
  int32_t beta = b.fresh(OpKind::copy, kMixer, {beta_source}, heads_bytes);
  beta = b.elementwise(kMixer, {beta}, heads_bytes);  // sigmoid
  const int32_t scanned = scan(b, {query, key, convolved, alpha, beta, state}, h.ssm_inner_size, b.parameters().scan_state, nullptr);
  b.last().cache_bytes = 0;  // the state came in as a value
  store_state(b, scanned, b.parameters().scan_state);
  int32_t output = b.fresh(OpKind::elementwise, kMixer, {scanned}, value_bytes);  // RMS norm of what lies before the state
  output = b.elementwise(kMixer, {output}, value_bytes, b.find("ssm_norm"));
  if (z == kNoValue) z = b.project("attn_gate", normed, n);
  z = b.elementwise(kMixer, {b.reshape(z)}, value_bytes);  // SiLU
  output = b.elementwise(kMixer, {output, z}, value_bytes);
  return b.reshape(b.project("ssm_out", output, n));
}

int32_t build_short_convolution(BlockBuilder& b, int32_t residual) {
  const int64_t n = b.pass().n_tokens;
  const int64_t n_embd = b.hyperparameters().n_embd;
  const int64_t bytes = n_embd * n * kActivationBytes;
  const int32_t normed = b.norm("attn_norm", residual);
  const int32_t state = load_state(b, b.parameters().conv_state);
  const int32_t bcx = b.project("shortconv.in_proj", normed, n);
  const int32_t bx = b.fresh(OpKind::elementwise, kMixer, {bcx}, bytes);
  const int32_t convolved = convolve(b, bx, state, b.require("shortconv.conv"), n_embd);
  const int32_t y = b.elementwise(kMixer, {b.view(bcx, bytes), convolved}, bytes);
  return b.reshape(b.project("shortconv.out_proj", y, n));
}

}  // namespace

int32_t build_mixer(BlockBuilder& b, int32_t residual) {
  switch (b.parameters().mixer) {
    case Mixer::mamba:
      return build_mamba(b, residual);
    case Mixer::mamba2:
      return build_mamba2(b, residual);
    case Mixer::gated_delta:
      return build_gated_delta(b, residual);
    case Mixer::short_convolution:
      return build_short_convolution(b, residual);
    case Mixer::attention:
    case Mixer::none:
      break;
  }
  return residual;
}

}  // namespace pshard
