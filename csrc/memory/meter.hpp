// The memory of many placements under one context: what they share is laid out once.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "memory/compute_buffers.hpp"
#include "memory/memory.hpp"
#include "model/model.hpp"
#include "model/placement.hpp"

namespace pshard {

class Meter {
 public:
  // The model must outlive this object. `n_tokens` sizes the graph, `context` the cache. `n_gpu`: as many as its placements use, or more.
  Meter(const Model& model, const ContextParameters& context, int64_t n_tokens, int n_gpu);

  // What `memory` says of the placement. O(tensors) once the parts of its graph have been seen. Not thread-safe: the tables grow.
  [[nodiscard]] MemoryReport operator()(const Placement& placement, MemoryStage stage = MemoryStage::stated);
  // What `resolve_flash_attention` says of it.
  [[nodiscard]] ContextParameters resolved(const Placement& placement);

 private:
  const Model& model_;
  ContextParameters context_;
  int64_t n_tokens_;
  int n_gpu_;
  std::optional<ComputeBuffers> deciding_;                 // of the pass that flash attention is decided by
  std::array<std::optional<ComputeBuffers>, 2> reserved_;  // without flash attention, and with it
};

}  // namespace pshard
