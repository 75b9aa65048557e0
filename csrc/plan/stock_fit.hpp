// What stock llama.cpp's --fit decides for one GPU: whole layers from the back by false position; for expert models first all layers with
// their experts in host memory, then experts back on the GPU from the front, then a part of one more layer.
//
// The rules are those of llama.cpp at ggml 0.25.3, its quirks included: the output layer counts as a layer, so that for an expert model
// the first layer on the GPU keeps its experts; next-token-prediction layers are forgotten, so that the first layers stay on the CPU.
#pragma once

#include <cstdint>

#include "memory/memory.hpp"
#include "model/model.hpp"
#include "model/placement.hpp"
#include "plan/strategy.hpp"

namespace pshard {

struct StockFit {
  int32_t n_gpu_layers = 0;            // -ngl; the output layer included
  int32_t n_partial = 0;               // layers on the GPU whose experts (all, or a part for the first) stay in host memory
  Overflow overflow = Overflow::none;  // what the first partial layer keeps; none: everything but its experts
  bool fits_whole = false;             // nothing had to change
  Placement placement;
  MemoryReport memory;
  int32_t n_probes = 0;  // placements whose memory was asked for
};

// Fits into `target_bytes` of device memory (llama.cpp: free memory less the margin) at the context's n_ubatch. Without a GPU there is
// nothing to fit: everything is on the CPU.
[[nodiscard]] StockFit stock_fit(const Model& model, const ContextParameters& context, int64_t target_bytes, bool has_gpu = true);

}  // namespace pshard
