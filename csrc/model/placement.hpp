// Where every group of every layer lives and runs. One type for all strategies, for stock llama.cpp and for the pshard runtime.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/tensor.hpp"

namespace pshard {

// The first numbers are the backend ids of the pshard runtime (reference: planner pull request, single GPU); from 4 on a value is `pinned`
// on another GPU than the first: GPU 1 has 4, GPU 2 has 5.
enum class Where : uint8_t {
  pinned = 0,    // resident in VRAM of GPU 0, computed there
  stream_a = 1,  // home in page-locked host memory, copied to scratch on GPU 0 by lane a, computed there
  stream_b = 2,  // the same by lane b
  cpu = 3,       // computed where it lives, in host memory
  gpu1 = 4,      // pinned on GPU 1
};
// ggml's scheduler takes 16 backends, one of which is the host.
inline constexpr int kMaxGpus = 15;
[[nodiscard]] constexpr Where pinned_on(int gpu) {
  return gpu == 0 ? Where::pinned : static_cast<Where>(static_cast<int>(Where::gpu1) + gpu - 1);
}
[[nodiscard]] constexpr bool is_pinned(Where where) { return where == Where::pinned || where >= Where::gpu1; }
[[nodiscard]] constexpr bool is_streamed(Where where) { return where == Where::stream_a || where == Where::stream_b; }
// The GPU that it runs on. Requires another place than `cpu`.
[[nodiscard]] constexpr int gpu_of(Where where) {
  return where >= Where::gpu1 ? static_cast<int>(where) - static_cast<int>(Where::gpu1) + 1 : 0;
}

// One layer: the place of each group; `group[Group::cache]` is where its KV or state lives (streamed: home in host memory, through a slot).
struct LayerPlacement {
  std::array<Where, kLayerGroupCount> group{};
  Where device = Where::pinned;  // of the layer as a whole, by llama.cpp's -ngl: overrides do not change it

  [[nodiscard]] Where operator[](Group g) const { return group[static_cast<size_t>(g)]; }
  Where& operator[](Group g) { return group[static_cast<size_t>(g)]; }
  bool operator==(const LayerPlacement&) const = default;

  [[nodiscard]] static LayerPlacement uniform(Where where) {
    LayerPlacement placement;
    placement.group.fill(where);
    placement.device = where;
    return placement;
  }
};

// A tensor that is not where the rest of its group is (outside the layers: not with the head, the first layer or the embedding):
// llama.cpp's overrides name single tensors.
struct TensorException {
  std::string name;
  Where where = Where::cpu;

  bool operator==(const TensorException&) const = default;
};

// A whole model. Layers name one of a few patterns, so that prices and bytes are tabulated per (layer class, pattern).
struct Placement {
  std::vector<LayerPlacement> patterns;
  std::vector<uint8_t> layer_pattern;  // index into patterns, one per computed layer
  Where head = Where::cpu;
  int n_gpu = 1;  // GPUs that there are, used or not
  // llama.cpp's pipeline over several GPUs: whatever crosses to another device exists four times there.
  bool pipeline = false;
  bool offload_kqv = true;    // false: all caches are on the host (`-nkvo`)
  bool offloads_all = false;  // `-ngl` puts all layers and the head on GPUs, whatever overrides move
  // llama.cpp's op-offload: from kOffloadMinTokens tokens on, an operation with `cpu` weights copies them to GPU 0 and runs there.
  bool op_offload = false;
  // The pshard runtime computes the head where it lies, also under op-offload.
  bool head_op_offload = true;
  std::vector<TensorException> exceptions;

  [[nodiscard]] const LayerPlacement& layer(size_t index) const { return patterns[layer_pattern[index]]; }
};

inline constexpr size_t kNoLayer = SIZE_MAX;
// Those of a layer and those outside the layers, or with `kNoLayer` the latter alone; by local names, without an encoder beside a decoder.
[[nodiscard]] std::vector<TensorException> exceptions_of(const Placement& placement, size_t layer, bool has_encoder = false);

// Throws std::invalid_argument unless every one of the model's `n_layer` layers has a pattern, and no more, and all that is on a GPU is on
// one that there is; without one nothing is offloaded. Called where a placement enters the core, so that nothing that prices has to look
// again. O(layers).
void check(const Placement& placement, size_t n_layer);

// GGML_OP_OFFLOAD_MIN_BATCH's default.
inline constexpr int64_t kOffloadMinTokens = 32;

}  // namespace pshard
