// Where every group of every layer lives and runs. One type for all strategies, for stock llama.cpp and for the pshard runtime.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/tensor.hpp"

namespace pshard {

// The numbers are the backend ids of the pshard runtime (reference: planner pull request, single GPU).
enum class Where : uint8_t {
  pinned = 0,    // resident in VRAM, computed there
  stream_a = 1,  // home in page-locked host memory, copied to VRAM scratch by lane a, computed on the GPU
  stream_b = 2,  // the same by lane b
  cpu = 3,       // computed where it lives, in host memory
};
[[nodiscard]] constexpr bool is_streamed(Where where) { return where == Where::stream_a || where == Where::stream_b; }

// One layer: the place of each group; `group[Group::cache]` is where its KV or state lives (streamed: home in host memory, through a slot).
struct LayerPlacement {
  std::array<Where, kLayerGroupCount> group{};

  [[nodiscard]] Where operator[](Group g) const { return group[static_cast<size_t>(g)]; }
  Where& operator[](Group g) { return group[static_cast<size_t>(g)]; }
  bool operator==(const LayerPlacement&) const = default;

  [[nodiscard]] static LayerPlacement uniform(Where where) {
    LayerPlacement placement;
    placement.group.fill(where);
    return placement;
  }
};

// A tensor that is not where the rest of its group is: llama.cpp's overrides may split a group.
struct TensorException {
  std::string name;
  Where where = Where::cpu;
};

// A whole model. Layers name one of a few patterns, so that prices and bytes are tabulated per (layer class, pattern).
struct Placement {
  std::vector<LayerPlacement> patterns;
  std::vector<uint8_t> layer_pattern;  // index into patterns, one per computed layer
  Where head = Where::cpu;
  // llama.cpp's op-offload: from kOffloadMinTokens tokens on, an operation with `cpu` weights copies them to the GPU and runs there.
  bool op_offload = false;
  // The pshard runtime computes the head where it lies, also under op-offload.
  bool head_op_offload = true;
  // Counted where weights are counted; prices and graphs follow the group.
  std::vector<TensorException> exceptions;

  [[nodiscard]] const LayerPlacement& layer(size_t index) const { return patterns[layer_pattern[index]]; }
};

// Throws std::invalid_argument unless every one of the model's `n_layer` layers has a pattern, and no more. Called where a placement
// enters the core, so that nothing that prices has to look again. O(layers).
void check(const Placement& placement, size_t n_layer);

// GGML_OP_OFFLOAD_MIN_BATCH's default.
inline constexpr int64_t kOffloadMinTokens = 32;

}  // namespace pshard
