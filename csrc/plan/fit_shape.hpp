// How llama.cpp's --fit distributes layers: so many for each GPU, the last of them without what overrides move away; and such a
// distribution as a placement.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/model.hpp"
#include "model/placement.hpp"
#include "plan/strategy.hpp"

namespace pshard {

// One GPU's layers, the output among the last GPU's. The last `n_partial` of them leave their experts in host memory; the first of those
// may keep a part of them (`overflow`), and then leaves the others with the next GPU, if there is one. Counts wrap, as llama.cpp's do.
struct GpuLayers {
  uint32_t n_layer = 0;
  uint32_t n_partial = 0;
  Overflow overflow = Overflow::none;
  [[nodiscard]] uint32_t n_whole() const { return n_layer - n_partial; }
  bool operator==(const GpuLayers&) const = default;
};

// What overrides move away from a layer by: whole groups, each with its largest tensor, and tensors that part from their group.
struct Cut {
  std::array<bool, kLayerGroupCount> moves{};
  std::vector<size_t> exceptions;  // index into the layer's tensors
};

// Whether llama.cpp's override for a partial layer matches this name, which lacks its "blk.N.": `none` moves just the experts, the others
// whatever begins like the part, so routers and shared experts too.
[[nodiscard]] bool is_moved(std::string_view local_name, Overflow kept);

class FitShapes {
 public:
  // GPUs by their free bytes. The model must outlive this object.
  FitShapes(const Model& model, const std::vector<int64_t>& free_bytes, bool offload_kqv, bool op_offload);

  // Without any flags: all layers on GPUs, in proportion to free memory.
  [[nodiscard]] Placement initial() const;
  // The same, with all experts in host memory.
  [[nodiscard]] Placement without_experts();
  [[nodiscard]] Placement distributed(const std::vector<GpuLayers>& gpus);

 private:
  [[nodiscard]] int n_gpu() const { return static_cast<int>(free_.size()); }
  [[nodiscard]] Placement whole_layers(int32_t n_gpu_layers, const std::vector<double>& shares) const;
  void cut(Placement& placement, size_t layer, Overflow kept, Where to);
  const Cut& cut_of(const Layer& layer, Overflow kept);

  const Model& model_;
  std::vector<double> free_;
  bool offload_kqv_;
  bool op_offload_;
  int32_t n_layer_;                                      // that are computed
  int32_t n_counted_;                                    // and with those that llama.cpp counts for -ngl, and loads nothing of
  std::vector<std::array<std::optional<Cut>, 4>> cuts_;  // by layer class and overflow
};

}  // namespace pshard
