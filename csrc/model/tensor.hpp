// The words of a GGUF tensor table: one tensor, what it is for, and the group it is placed with.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace pshard {

// A ggml element type as the file names it. Sizes come from the `gguf` package, so that C++ keeps no table of its own.
struct DataType {
  int32_t id = 0;              // ggml_type number
  int32_t block_elements = 1;  // elements per block
  int32_t block_bytes = 4;     // bytes per block

  // Bytes of a row of `n` elements; rounds up to whole blocks.
  [[nodiscard]] int64_t row_bytes(int64_t n) const { return (n + block_elements - 1) / block_elements * block_bytes; }
  bool operator==(const DataType&) const = default;
};

// The part of a layer that is placed as a unit. `cache` is where the layer's KV or recurrent state lives; attention itself runs there.
// `head` and `embedding` lie outside the layers.
enum class Group : uint8_t {
  norms,      // attention, FFN and post norms; residual additions go with them
  attention,  // projections, their biases and norms
  cache,      // KV cache or recurrent state: no weights
  mixer,      // recurrent mixer: Mamba, gated delta, short convolution
  ffn_up,     // dense FFN (gate and up fused count as `ffn_up`)
  ffn_gate,
  ffn_down,
  router,      // expert gate and its biases
  experts_up,  // routed experts (gate and up fused count as `experts_up`)
  experts_gate,
  experts_down,
  shared_up,  // experts that every token passes
  shared_gate,
  shared_down,
  embedding,
  head,
};
inline constexpr int kGroupCount = 16;
inline constexpr int kLayerGroupCount = 14;  // the groups that occur in layers

[[nodiscard]] std::string_view to_string(Group group);

struct Tensor {
  std::string name;
  DataType type;
  std::array<int64_t, 4> shape{1, 1, 1, 1};  // as in the file: shape[0] is the contiguous, contracted dimension
  int64_t n_bytes = 0;
  bool host_only = false;  // no GPU has a kernel for its operation: llama.cpp keeps it in host memory wherever its layer is
};

// What an adapter (LoRA) adds to a tensor, as pairs behind its name: "blk.3.attn_q.weight.lora_a.0" and "blk.3.attn_q.weight.lora_b.0" are
// the first adapter's.
inline constexpr std::string_view kAdapterDown = ".lora_a.";
inline constexpr std::string_view kAdapterUp = ".lora_b.";

// Layer number of "blk.N.…", "enc.blk.N.…" and "dec.blk.N.…", 0 for what llama.cpp keeps with the first layer, or -1 for a tensor outside
// the layers.
[[nodiscard]] int32_t layer_of(std::string_view tensor_name);

// "attn_q.weight" of "blk.3.attn_q.weight"; the whole name where there is no such prefix.
[[nodiscard]] std::string_view local_name(std::string_view tensor_name);

// Of an encoder's tensor, which has the decoder's local names.
[[nodiscard]] inline bool is_of_encoder(std::string_view tensor_name) { return tensor_name.starts_with("enc."); }

// Group of a tensor by its name. A name that is not known goes with `norms` in a layer and with `embedding` outside.
[[nodiscard]] Group group_of(std::string_view tensor_name);

}  // namespace pshard
