// A machine and a model with round numbers, for tests whose figures are worked by hand.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "machine/machine.hpp"
#include "model/model.hpp"

namespace pshard::cases {

inline constexpr DataType kF32{0, 1, 4};
inline constexpr DataType kF16{1, 1, 2};

// Products of F16 weights at one rate whatever the batch; no launches.
inline Processor processor(double bytes_per_second, double flop_per_second) {
  Processor p;
  p.memory_bytes_per_second = bytes_per_second;
  p.memory_peak_bytes_per_second = bytes_per_second;
  p.peak_flop_per_second = flop_per_second;
  for (const DataType& type : {kF32, kF16}) {
    p.mul_mat[static_cast<size_t>(type.id)] = {{1.0}, {flop_per_second}, Basis::measured, 0.0};
    p.mul_mat_id[static_cast<size_t>(type.id)] = p.mul_mat[static_cast<size_t>(type.id)];
  }
  p.attention = {{1.0, {{1.0}, {flop_per_second}, Basis::measured, 0.0}}};
  return p;
}

// Copies take one nanosecond per byte in both directions, without set-up.
inline Machine machine() {
  Machine m;
  m.has_gpu = true;
  m.gpu = processor(1e12, 1e14);
  m.cpu = processor(5e10, 1e12);
  m.vram_bytes = int64_t{1} << 40;
  m.ram_bytes = int64_t{1} << 40;
  m.up = {{1.0}, {1e9}, 0.0, 1e9, Basis::measured, 0.0};
  m.down = m.up;
  m.copy_engines = 2;
  m.pageable_bytes_per_second = 1e9;
  m.page_lock_bytes = int64_t{1} << 40;
  m.host_bytes_per_second = 5e10;
  return m;
}

inline Tensor tensor(std::string name, DataType type, std::array<int64_t, 4> shape) {
  return {std::move(name), type, shape, type.row_bytes(shape[0]) * shape[1] * shape[2] * shape[3]};
}

inline constexpr int64_t kEmbd = 1000;
inline constexpr int64_t kVocab = 5000;
inline constexpr int64_t kExperts = 8;
inline constexpr int64_t kExpertsUsed = 2;
// Bytes of one layer's tensors: 2 norms of 4000, q and output of 2e6 each, k and v of 4e5 each; FFN 3 x 4e6.
inline constexpr double kNormBytes = 8'000;
inline constexpr double kAttentionBytes = 4'800'000;
inline constexpr double kFfnBytes = 12'000'000;
// Experts: a router of 1000 x 8 F32, 3 tensors of 8 experts of 1000 x 500 F16.
inline constexpr double kRouterBytes = 32'000;
inline constexpr double kExpertTensorBytes = 8'000'000;
inline constexpr double kCellBytes = 800;  // K and V of one token in one layer: 2 x 200 x F16
inline constexpr double kHeadBytes = 10'000'000;

// 25 heads of 40, 5 of them for K and V; FFN of 2000, or 8 experts of 500 of which 2 are used.
inline Model model(int32_t n_layer, bool with_experts = false) {
  Hyperparameters h;
  h.architecture = with_experts ? "qwen3moe" : "llama";
  h.n_layer = n_layer;
  h.n_embd = kEmbd;
  h.n_vocab = kVocab;
  h.n_ctx_train = 32768;
  if (with_experts) {
    h.n_expert = kExperts;
    h.n_expert_used = kExpertsUsed;
  }
  LayerParameters layer;
  layer.n_head = 25;
  layer.n_head_kv = 5;
  layer.head_dim_k = layer.head_dim_v = 40;
  h.layers.assign(static_cast<size_t>(n_layer), layer);
  std::vector<Tensor> tensors{tensor("token_embd.weight", kF16, {kEmbd, kVocab, 1, 1}),
                              tensor("output_norm.weight", kF32, {kEmbd, 1, 1, 1}), tensor("output.weight", kF16, {kEmbd, kVocab, 1, 1})};
  for (int32_t i = 0; i < n_layer; ++i) {
    const auto add = [&](const std::string& name, DataType type, std::array<int64_t, 4> shape) {
      tensors.push_back(tensor("blk." + std::to_string(i) + "." + name + ".weight", type, shape));
    };
    add("attn_norm", kF32, {kEmbd, 1, 1, 1});
    add("ffn_norm", kF32, {kEmbd, 1, 1, 1});
    add("attn_q", kF16, {kEmbd, 1000, 1, 1});
    add("attn_k", kF16, {kEmbd, 200, 1, 1});
    add("attn_v", kF16, {kEmbd, 200, 1, 1});
    add("attn_output", kF16, {1000, kEmbd, 1, 1});
    if (with_experts) {
      add("ffn_gate_inp", kF32, {kEmbd, kExperts, 1, 1});
      add("ffn_gate_exps", kF16, {kEmbd, 500, kExperts, 1});
      add("ffn_up_exps", kF16, {kEmbd, 500, kExperts, 1});
      add("ffn_down_exps", kF16, {500, kEmbd, kExperts, 1});
    } else {
      add("ffn_gate", kF16, {kEmbd, 2000, 1, 1});
      add("ffn_up", kF16, {kEmbd, 2000, 1, 1});
      add("ffn_down", kF16, {2000, kEmbd, 1, 1});
    }
  }
  return Model(std::move(h), std::move(tensors));
}

// To make a similar model of.
inline std::vector<Tensor> tensors_of(const Model& model) {
  std::vector<Tensor> tensors(model.embedding());
  for (const Layer& layer : model.layers()) tensors.insert(tensors.end(), layer.tensors.begin(), layer.tensors.end());
  tensors.insert(tensors.end(), model.head().begin(), model.head().end());
  return tensors;
}

}  // namespace pshard::cases
