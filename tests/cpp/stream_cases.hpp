// What tests of the executor share: small models of the types that kernels multiply, and placements that use every kind of split.
#pragma once

#include <string>
#include <vector>

#include "model/placement.hpp"
#include "probe_cases.hpp"
#include "stream/executor.hpp"
#include "stream/host_backend.hpp"

namespace pshard::stream_cases {

inline const DataType kF32{0, 1, 4};
inline const DataType kF16{1, 1, 2};
inline const DataType kQ8{8, 32, 34};
inline const DataType kQ4K{12, 256, 144};
inline const DataType kQ6K{14, 256, 210};

inline DataType data_type(WeightType type) {
  const WeightFormat& format = format_of(type);
  return {format.number, static_cast<int32_t>(format.columns), static_cast<int32_t>(format.bytes)};
}

inline Tensor tensor(std::string name, DataType type, std::array<int64_t, 4> shape) {
  return {std::move(name), type, shape, type.row_bytes(shape[0]) * shape[1] * shape[2] * shape[3]};
}

// 4 heads of 64, 2 of them for K and V; an FFN of 512, or 8 experts of 256 of which 2 are used. `ffn` is the type of their matrices.
inline Model model(int32_t n_layer, bool with_experts = false, DataType ffn = kQ4K) {
  Hyperparameters h;
  h.architecture = with_experts ? "qwen3moe" : "llama";
  h.n_layer = n_layer;
  h.n_embd = 256;
  h.n_vocab = 512;
  h.n_ctx_train = 4096;
  if (with_experts) {
    h.n_expert = 8;
    h.n_expert_used = 2;
  }
  LayerParameters layer;
  layer.n_head = 4;
  layer.n_head_kv = 2;
  layer.head_dim_k = layer.head_dim_v = 64;
  h.layers.assign(static_cast<size_t>(n_layer), layer);
  std::vector<Tensor> tensors{tensor("token_embd.weight", kQ8, {256, 512, 1, 1}), tensor("output_norm.weight", kF32, {256, 1, 1, 1}),
                              tensor("output.weight", kQ6K, {256, 512, 1, 1})};
  for (int32_t i = 0; i < n_layer; ++i) {
    const auto add = [&](const std::string& name, DataType type, std::array<int64_t, 4> shape) {
      tensors.push_back(tensor("blk." + std::to_string(i) + "." + name + ".weight", type, shape));
    };
    add("attn_norm", kF32, {256, 1, 1, 1});
    add("ffn_norm", kF32, {256, 1, 1, 1});
    add("attn_q", kQ4K, {256, 256, 1, 1});
    add("attn_k", kQ8, {256, 128, 1, 1});
    add("attn_v", kF16, {256, 128, 1, 1});
    add("attn_output", kQ4K, {256, 256, 1, 1});
    if (with_experts) {
      add("ffn_gate_inp", kF32, {256, 8, 1, 1});
      add("ffn_gate_exps", ffn, {256, 256, 8, 1});
      add("ffn_up_exps", ffn, {256, 256, 8, 1});
      add("ffn_down_exps", kQ6K, {256, 256, 8, 1});
    } else {
      add("ffn_gate", ffn, {256, 512, 1, 1});
      add("ffn_up", ffn, {256, 512, 1, 1});
      add("ffn_down", kQ6K, {512, 256, 1, 1});
    }
  }
  return Model(std::move(h), std::move(tensors));
}

inline Pass pass(int64_t n_tokens) {
  Pass pass;
  pass.n_tokens = n_tokens;
  pass.n_outputs = n_tokens < 32 ? n_tokens : 1;
  pass.n_kv = pass.n_kv_window = 256;
  pass.type_k = pass.type_v = kF16;
  return pass;
}

// One pattern after the other, over again.
inline Placement placement(const Model& model, const std::vector<LayerPlacement>& patterns, Where head) {
  Placement placement;
  placement.patterns = patterns;
  for (size_t i = 0; i < model.layers().size(); ++i) placement.layer_pattern.push_back(static_cast<uint8_t>(i % patterns.size()));
  placement.head = head;
  return placement;
}

inline LayerPlacement with_ffn(LayerPlacement layer, Where where) {
  for (const Group group : {Group::ffn_up, Group::ffn_gate, Group::ffn_down, Group::experts_up, Group::experts_gate, Group::experts_down}) {
    layer[group] = where;
  }
  return layer;
}

// Pinned, streamed on both lanes, attention streamed with its FFN on the CPU, CPU alone.
inline std::vector<LayerPlacement> all_kinds() {
  const auto uniform = [](Where where) { return LayerPlacement::uniform(where); };
  return {uniform(Where::pinned),
          uniform(Where::stream_a),
          uniform(Where::stream_b),
          with_ffn(uniform(Where::stream_a), Where::cpu),
          with_ffn(uniform(Where::pinned), Where::stream_b),
          uniform(Where::cpu)};
}

inline std::vector<int64_t> cache_bytes(const Model& model) { return std::vector<int64_t>(model.layers().size(), 2 * 2 * 128 * 256); }

inline Schedule schedule(const Model& model, const Placement& where, int64_t n_tokens) {
  return make_schedule(model, where, pass(n_tokens), cache_bytes(model));
}

inline HostBackendOptions backend_options(int n_devices = 1, int64_t arena_bytes = int64_t{64} << 20) {
  HostBackendOptions options;
  options.host_cpus = test_cpus(2);
  for (int i = 0; i < n_devices; ++i) options.devices.push_back({test_cpus(2), test_cpus(1), arena_bytes});
  options.page_lock_bytes = int64_t{1} << 30;
  options.path = cpu_paths().back();
  return options;
}

inline ExecutorOptions checking(int n_devices = 1, size_t n_schedules = 1) {
  ExecutorOptions options;
  options.vram_bytes.assign(n_schedules, std::vector<int64_t>(static_cast<size_t>(n_devices), int64_t{64} << 20));
  options.check = true;
  return options;
}

}  // namespace pshard::stream_cases
