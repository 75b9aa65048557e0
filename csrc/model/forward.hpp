// One forward pass at a batch of tokens as a list of operations with shapes, FLOP and bytes. Memory and time both read this list;
// nothing else describes a model's computation.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/model.hpp"
#include "model/operation.hpp"

namespace pshard {

// What the pass is sized for. Memory reserves for the worst case (all cells, logits for every token); time uses the cells in use and the
// rows that are wanted.
struct Pass {
  int64_t n_tokens = 1;       // tokens of the micro-batch
  int64_t n_outputs = 1;      // rows of logits
  int64_t n_seqs = 1;         // sequences in the micro-batch
  int64_t n_streams = 1;      // streams of the KV cache that they use: n_seqs, or 1 where the cache is unified
  int64_t n_kv = 256;         // cells that an attention over the whole context reads, per stream
  int64_t n_kv_window = 256;  // cells that a sliding-window attention reads, per stream
  int64_t n_filled = 0;       // cells in use, per stream, the micro-batch's own behind all others; 0: all that are read, and none is masked
  bool flash_attn = true;
  // llama.cpp transposes the V cache for attention that is not fused; not so where it found only later that it cannot be.
  bool plain_v = false;
  // The graph of the pshard runtime, whose llama.cpp (ggml 0.9.11) is older than the one described elsewhere (0.25.3): masks come as f32
  // and are cast on the GPU, rows that are not wanted are dropped in the last layer of all architectures, quantised caches are not rotated,
  // rope factors are on the GPU, fused attention runs where its sinks are, and the allocator knows neither fused kernels nor scratch
  // behind attention.
  bool pshard_runtime = false;
  DataType type_k{1, 1, 2};
  DataType type_v{1, 1, 2};

  [[nodiscard]] bool transposed_v() const { return !flash_attn && !plain_v; }
};
// Throws std::invalid_argument, naming the field, unless tokens, outputs, sequences and streams are at least 1 and cells at least 0, and
// all below 2^31, as llama.cpp counts them.
void check(const Pass& pass);

// What blocks hand on beside the residual: the recurrent state that a layer starts from, where a block before has already read it, of a
// convolution or shift and of a scan; and what several layers read (parts of embeddings, chosen cells, values of the first layer).
enum class Beside : uint8_t { state, scan, shared };
inline constexpr size_t kHandedCount = 3;
struct Handed {
  int32_t in = kNoValue;
  int32_t out = kNoValue;
  [[nodiscard]] bool passes() const { return in != kNoValue && in == out; }
};

// A run of operations with values of its own numbering. inputs of the block: `residual_in` (kNoValue in the first block) and the graph
// inputs among its values.
struct Block {
  std::vector<Operation> operations;
  std::vector<Value> values;
  std::vector<FusedRun> fused;
  std::vector<KernelRun> kernels;  // those that the description knows; fusion.hpp has all
  std::vector<int32_t> leaves;     // graph inputs and rooms among the values, in the order in which ggml's graph lists them
  int32_t residual_in = kNoValue;
  int32_t residual_out = kNoValue;
  std::array<Handed, kHandedCount> handed{};  // by Beside
};

// How a layer's block hangs together with its neighbours. A recurrent layer's state may be read before the layers before it have ended:
// then the block that computes last before that does it, given whose state it is, and the block itself finds it loaded. Blocks between them
// pass it on. Without neighbours a block is complete in itself.
struct LayerChain {
  const Layer* loads_for = nullptr;
  const Layer* passes_for = nullptr;
  bool state_is_loaded = false;
  bool passes_selection = false;  // the layer behind attends to the cells that were chosen for this one
  // Of the embeddings, which then lie where a state would: the part that this layer adds to its result, from 1 on; 0: none.
  int64_t embeddings_part = 0;
};
// Whether the layer's convolution state is the first that it reads, so that llama.cpp reads it early.
[[nodiscard]] bool reads_state_early(const LayerParameters& layer);
// Whether llama.cpp puts all of the layer behind what the next layer reads early: an FFN without experts, and nothing else.
[[nodiscard]] bool is_put_off(const Layer& layer);

// Embedding look-up (runs on the host) and what precedes layer 0. `loads_for`: the layer whose state it reads ahead.
[[nodiscard]] Block embedding_block(const Model& model, const Pass& pass, const Layer* loads_for = nullptr);
// Whether the first layer's state is read before the embeddings are normed.
[[nodiscard]] bool loads_state_before_norm(const Model& model);
// One layer. `is_last`: rows that are not wanted are dropped before its FFN, as llama.cpp does.
[[nodiscard]] Block layer_block(const Model& model, const Layer& layer, const Pass& pass, bool is_last, const LayerChain& chain = {});
// Final norm and output projection.
[[nodiscard]] Block head_block(const Model& model, const Pass& pass);

}  // namespace pshard
