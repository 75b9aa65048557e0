// A two-layer dense model, small enough to count by hand.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/model.hpp"

namespace pshard::tiny {

inline const DataType kF16{1, 1, 2};
inline constexpr int64_t kEmbd = 64;
inline constexpr int64_t kHeads = 4;
inline constexpr int64_t kHeadsKv = 2;
inline constexpr int64_t kHeadDim = 64;  // GPUs fuse attention over it
inline constexpr int64_t kFfn = 96;
inline constexpr int64_t kVocab = 100;
inline constexpr int64_t kLayerWeights = 2 * kEmbd * kHeads * kHeadDim + 2 * kEmbd * kHeadsKv * kHeadDim + 3 * kEmbd * kFfn;

inline Tensor tensor(std::string name, int64_t rows, int64_t columns = 1) {
  return Tensor{std::move(name), kF16, {rows, columns, 1, 1}, kF16.row_bytes(rows) * columns};
}

inline Model model(int64_t window = 0) {
  Hyperparameters h;
  h.architecture = "llama";
  h.n_layer = 2;
  h.n_embd = kEmbd;
  h.n_vocab = kVocab;
  LayerParameters layer;
  layer.n_head = kHeads;
  layer.n_head_kv = kHeadsKv;
  layer.head_dim_k = layer.head_dim_v = kHeadDim;
  h.layers = {layer, layer};
  h.layers[0].window = window;
  std::vector<Tensor> tensors{tensor("token_embd.weight", kEmbd, kVocab), tensor("output_norm.weight", kEmbd),
                              tensor("output.weight", kEmbd, kVocab)};
  for (int i = 0; i < 2; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    tensors.push_back(tensor(blk + "attn_norm.weight", kEmbd));
    tensors.push_back(tensor(blk + "attn_q.weight", kEmbd, kHeads * kHeadDim));
    tensors.push_back(tensor(blk + "attn_k.weight", kEmbd, kHeadsKv * kHeadDim));
    tensors.push_back(tensor(blk + "attn_v.weight", kEmbd, kHeadsKv * kHeadDim));
    tensors.push_back(tensor(blk + "attn_output.weight", kHeads * kHeadDim, kEmbd));
    tensors.push_back(tensor(blk + "ffn_norm.weight", kEmbd));
    tensors.push_back(tensor(blk + "ffn_gate.weight", kEmbd, kFfn));
    tensors.push_back(tensor(blk + "ffn_up.weight", kEmbd, kFfn));
    tensors.push_back(tensor(blk + "ffn_down.weight", kFfn, kEmbd));
  }
  return Model(h, tensors);
}

}  // namespace pshard::tiny
