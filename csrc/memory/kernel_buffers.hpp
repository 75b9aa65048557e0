// What ggml's CUDA kernels take besides the compute buffers: temporary buffers from a pool that grows to the largest, and a recorded graph
// of the kernels of a pass. llama.cpp reserves neither; both are counted from the same operations, as upper ends.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/memory.hpp"

namespace pshard {

struct KernelDemand {
  int64_t n_kernels = 0;   // operations of one pass that launch something
  int64_t pool_bytes = 0;  // the most that one of them takes
};

// Operations of weights and caches that are resident on a GPU, one entry per GPU; `n_tokens` sizes them. O(layers + operations of each
// layer class). Throws std::invalid_argument where the placement does not match the model.
[[nodiscard]] std::vector<KernelDemand> kernel_demand(const Model& model, const Placement& placement, const ContextParameters& context,
                                                      int64_t n_tokens);

}  // namespace pshard
