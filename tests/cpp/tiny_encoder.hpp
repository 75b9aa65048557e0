// Encoders small enough to be counted by hand.
#pragma once

#include <string>
#include <utility>

#include "model/encoder.hpp"
#include "model/layout.hpp"

namespace pshard {

inline Tensor weight_of(std::string name, std::array<int64_t, 4> shape, const DataType& type = kF16) {
  const int64_t n_bytes = type.row_bytes(shape[0]) * shape[1] * shape[2] * shape[3];
  return {.name = std::move(name), .type = type, .shape = shape, .n_bytes = n_bytes};
}

// Frames of 640 samples, normed and projected to 32 numbers.
inline Encoder tiny_sound() {
  return {.kind = "gemma4ua",
          .is_of_sound = true,
          .numbers = {{"embedding_length", {640}}, {"attention.head_count", {1}}, {"block_count", {0}}},
          .tensors = {weight_of("mm.a.input_projection.weight", {640, 32, 1, 1})}};
}

// Patches of 4 x 4 pixels, one layer of two heads with `head_dim` dimensions, and two projections.
inline Encoder tiny_images(int64_t head_dim) {
  const int64_t n = 2 * head_dim;
  Encoder encoder{.kind = "janus_pro",
                  .is_of_sound = false,
                  .numbers = {{"embedding_length", {n}}, {"attention.head_count", {2}}, {"block_count", {1}}, {"patch_size", {4}}},
                  .tensors = {weight_of("v.patch_embd.weight", {4, 4, 3, n}), weight_of("v.position_embd.weight", {n, 4, 1, 1}, kF32),
                              weight_of("mm.0.weight", {n, n, 1, 1}), weight_of("mm.1.weight", {n, n, 1, 1})}};
  for (const std::string part : {"attn_q", "attn_k", "attn_v", "attn_out"}) {
    encoder.tensors.push_back(weight_of("v.blk.0." + part + ".weight", {n, n, 1, 1}));
  }
  for (const std::string part : {"ln1", "ln2"}) encoder.tensors.push_back(weight_of("v.blk.0." + part + ".weight", {n, 1, 1, 1}, kF32));
  encoder.tensors.push_back(weight_of("v.blk.0.ffn_up.weight", {n, 4 * n, 1, 1}));
  encoder.tensors.push_back(weight_of("v.blk.0.ffn_down.weight", {4 * n, n, 1, 1}));
  return encoder;
}

}  // namespace pshard
