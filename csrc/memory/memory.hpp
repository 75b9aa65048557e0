// Bytes per device for a placement: weights, KV and recurrent state, compute buffers. Weights and state are what llama.cpp allocates, to
// the byte; compute buffers come from compute_buffers.hpp.
#pragma once

#include <cstdint>
#include <vector>

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
  int64_t n_outputs_max = 0;  // tokens of a micro-batch whose logits are wanted; 0: of all
  bool flash_attn = true;
  // With flash_attn: unless a layer's device cannot; without: it was found that one cannot, when the V cache was already laid out.
  bool flash_attn_auto = false;
  bool kv_unified = false;
  bool swa_full = false;
  int64_t cell_padding = 256;   // what contexts and windows are padded to: llama.cpp's step, or the block of a paged cache
  bool pshard_runtime = false;  // buffers of its llama.cpp, not of the stock one: see Pass
  DataType type_k{1, 1, 2};
  DataType type_v{1, 1, 2};
};

// Throws std::invalid_argument for a context, batch or sequence count that is not positive. Whatever counts cells calls it.
void check(const ContextParameters& context);

struct CacheCells {
  int64_t n_streams = 1;
  int64_t full = 0;    // cells per stream of layers that attend to the whole context
  int64_t window = 0;  // cells per stream of sliding-window layers
};
// Contexts are padded to 256 cells per stream; a window layer keeps its window and one micro-batch, padded alike, where that is less.
[[nodiscard]] CacheCells cache_cells(const Model& model, const ContextParameters& context);

// KV and recurrent state of one layer, by tensor. A transposed V cache (no flash attention) has the widest layer's rows in all of them. A
// GPU pads it like weights.
[[nodiscard]] std::vector<int64_t> cache_tensor_bytes(const Model& model, const Layer& layer, const ContextParameters& context,
                                                      Where where = Where::pinned);
// Their sum.
[[nodiscard]] int64_t cache_bytes(const Model& model, const Layer& layer, const ContextParameters& context, Where where = Where::pinned);

// What llama.cpp makes of flash_attn_auto: on where V is quantised, which needs it, or where every layer attends on its own device.
[[nodiscard]] ContextParameters resolve_flash_attention(const Model& model, const Placement& placement, const ContextParameters& context);

// The pass that llama.cpp reserves its buffers for, at `n_tokens` tokens: all cells, logits for as many tokens as may want them.
[[nodiscard]] Pass reserved_pass(const Model& model, const ContextParameters& context, int64_t n_tokens);

// Tensor bytes as a CUDA buffer holds them: rows of quantised tensors padded to 512 elements, tensors to 128 bytes.
[[nodiscard]] int64_t gpu_tensor_bytes(const Tensor& tensor);
// And as a host buffer does: padded to 32 bytes.
[[nodiscard]] int64_t host_tensor_bytes(const Tensor& tensor);

// Weights of one layer that are resident on a GPU (pinned), and those whose home is host memory (streamed or cpu). O(tensors).
[[nodiscard]] int64_t gpu_weight_bytes(const Layer& layer, const LayerPlacement& placement);
[[nodiscard]] int64_t host_weight_bytes(const Layer& layer, const LayerPlacement& placement);
// The head's weights on a GPU and on the host. A tied head is a second copy on the GPU and none on the host.
[[nodiscard]] int64_t gpu_head_bytes(const Model& model);
[[nodiscard]] int64_t host_head_bytes(const Model& model);
// What precedes the layers, which is in host memory but for a few small tensors; `outside_weight_bytes` is exact about those.
[[nodiscard]] int64_t embedding_bytes(const Model& model);

struct WeightBytes {
  int64_t gpu_bytes = 0;
  int64_t host_bytes = 0;
};
// Everything outside the layers: the embedding in host memory, the head where the placement has it, an embedding norm with layer 0, and
// rope factors with the layers that use them (every device that has layers keeps a copy). On all GPUs together.
[[nodiscard]] WeightBytes outside_weight_bytes(const Model& model, const Placement& placement);

struct DeviceBytes {
  int64_t weights_bytes = 0;
  int64_t cache_bytes = 0;
  int64_t compute_bytes = 0;  // includes stream_bytes
  int64_t stream_bytes = 0;   // the part of compute that holds streamed weights and KV
  [[nodiscard]] int64_t total() const { return weights_bytes + cache_bytes + compute_bytes; }
};

struct MemoryReport {
  std::vector<DeviceBytes> gpus;
  DeviceBytes host;

  // The first GPU, the only one that plans place on; without a GPU, nothing.
  [[nodiscard]] DeviceBytes gpu() const { return gpus.empty() ? DeviceBytes{} : gpus.front(); }
  // Where bytes of this place have their home.
  [[nodiscard]] DeviceBytes& home(Where where) { return is_pinned(where) ? gpus[static_cast<size_t>(gpu_of(where))] : host; }
};

// What llama.cpp states before it allocates (`--fit` decides by that), or allocates when it runs: see BlockPlacement's ties.
enum class MemoryStage : uint8_t { stated, running };

// Weights and caches only: what a loaded model holds whether it computes or not. Of flash attention, `context` says what was decided.
[[nodiscard]] MemoryReport resident_memory(const Model& model, const Placement& placement, const ContextParameters& context);

// One placement, everything; `n_tokens` sizes the graph, `context` the cache, with flash_attn_auto resolved. Throws std::invalid_argument
// where the placement does not match the model.
[[nodiscard]] MemoryReport memory(const Model& model, const Placement& placement, const ContextParameters& context, int64_t n_tokens,
                                  MemoryStage stage = MemoryStage::stated);

}  // namespace pshard
