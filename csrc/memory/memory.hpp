// Bytes per device for a placement: weights, KV and recurrent state, compute buffers.
#pragma once

#include <cstdint>

#include "model/forward.hpp"
#include "model/model.hpp"
#include "model/placement.hpp"

namespace pshard {

// llama.cpp's context settings, with its names.
struct ContextParameters {
  int64_t n_ctx = 8192;
  int64_t n_batch = 2048;
  int64_t n_ubatch = 512;
  int64_t n_seq_max = 1;
  bool flash_attn = true;
  bool kv_unified = false;
  bool swa_full = false;
  bool offload_kqv = true;
  DataType type_k{1, 1, 2};
  DataType type_v{1, 1, 2};
};

struct CacheCells {
  int64_t n_streams = 1;
  int64_t full = 0;    // cells per stream of layers that attend to the whole context
  int64_t window = 0;  // cells per stream of sliding-window layers
};
[[nodiscard]] CacheCells cache_cells(const Model& model, const ContextParameters& context);

// KV and recurrent state of one layer.
[[nodiscard]] int64_t cache_bytes(const Model& model, const Layer& layer, const ContextParameters& context);

// The pass that llama.cpp reserves its buffers for, at `n_tokens` tokens.
[[nodiscard]] Pass reserved_pass(const Model& model, const ContextParameters& context, int64_t n_tokens);

struct DeviceBytes {
  int64_t weights_bytes = 0;
  int64_t cache_bytes = 0;
  int64_t compute_bytes = 0;  // includes stream_bytes
  int64_t stream_bytes = 0;   // the part of compute that holds streamed weights and KV
  [[nodiscard]] int64_t total() const { return weights_bytes + cache_bytes + compute_bytes; }
};

struct MemoryReport {
  DeviceBytes gpu;
  DeviceBytes host;
};

}  // namespace pshard
