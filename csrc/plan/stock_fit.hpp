// What stock llama.cpp's --fit decides: a shorter context, where that was left open; else layers for each GPU, and which experts stay in
// host memory.
//
// The rules are those of llama.cpp at ggml 0.25.3 (common/fit.cpp), its quirks included; docs/fit.md tells them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "memory/memory.hpp"
#include "model/model.hpp"
#include "model/placement.hpp"
#include "plan/fit_shape.hpp"

namespace pshard {

struct FitDevice {
  int64_t free_bytes = 0;
  int64_t margin_bytes = 0;  // that should stay free
  [[nodiscard]] int64_t target_bytes() const { return free_bytes - margin_bytes; }
};

// The shortest context that --fit may choose, where it may not shorten it at all (`-c 0`).
inline constexpr int64_t kFullContext = UINT32_MAX;

// A draft model on the same GPUs. Its context is as long as the main model's.
struct FitDraft {
  const Model* model = nullptr;
  ContextParameters context{};
  Placement placement{};
  std::vector<size_t> gpus{};  // of the main model's, by the draft's own; others are not looked at
};

struct FitRequest {
  std::vector<FitDevice> gpus;
  std::optional<FitDevice> host = std::nullopt;  // looked at where there is no GPU; beside one, llama.cpp takes host memory for unlimited
  int64_t n_ctx_min = 4096;                      // per sequence that has a cache of its own
  bool offload_kqv = true;
  bool op_offload = true;
  std::optional<Placement> given = std::nullopt;  // by -ngl, -ts or -ot, which --fit does not change
  int32_t n_gpu_layers = -1;                      // -ngl of the given placement; negative: all
  std::optional<FitDraft> draft = std::nullopt;   // whose bytes are added to every measurement
};

enum class FitOutcome : uint8_t {
  unchanged,        // everything is on GPUs and leaves the margins free
  shorter_context,  // the same, at a shorter context
  distributed,      // layers were distributed, also where not even one fits
  refused,          // the placement is given, or there is no GPU, and no context is short enough
};

// A distribution that was tried, and the bytes that it takes of each GPU.
struct FitProbe {
  std::vector<GpuLayers> layers;
  std::vector<int64_t> bytes;  // with those of the draft
};

struct StockFit {
  FitOutcome outcome = FitOutcome::unchanged;
  int64_t n_ctx = 0;
  std::vector<GpuLayers> layers;  // by GPU, where they were distributed
  Placement placement;
  MemoryReport memory;  // of this placement at this context
  bool ends = true;     // false: a count wrapped, and llama.cpp would fail or go on for ever
  std::vector<FitProbe> probes;
  int32_t n_measured = 0;  // placements whose memory was asked for, the probes among them
};

// The context's n_ctx may be 0: as long as the model was trained for (per sequence that has a cache of its own), or shorter where that
// does not fit. Throws std::invalid_argument where then nothing tells a length, and where a given placement has other GPUs.
[[nodiscard]] StockFit stock_fit(const Model& model, const ContextParameters& context, const FitRequest& request);

}  // namespace pshard
