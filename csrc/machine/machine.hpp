// The machine as the cost model sees it: rooflines of the two processors, link curves, contention, capacities. Built by Python from a
// profile file; every rate is what a kernel reaches, and the peaks beside it are hard bounds that no prediction may beat.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace pshard {

// Where a figure comes from, from the most to the least trustworthy. A prediction is as good as the worst figure in it.
enum class Basis : uint8_t { measured, imported, reference, estimated };

// FLOP/s that a kernel reaches over its batch (rows of activations; for experts: rows per expert; for attention: query tokens; for
// scans: tokens).
// Interpolated linearly in log-log space between the points, constant rate per row below the first and constant rate above the last.
struct RateSeries {
  std::vector<double> batch;            // ascending, positive
  std::vector<double> flop_per_second;  // same length, positive
  Basis basis = Basis::estimated;
  double spread = 0.0;  // relative half-width of the range that a prediction from this series carries

  [[nodiscard]] bool empty() const { return batch.empty(); }
  // Requires a non-empty series and m > 0.
  [[nodiscard]] double rate(double m) const;
};

// Attention over a cache of about `depth` cells: FLOP/s over query tokens. Cells that no query has read yet lie scattered, and come on top
// at `first_bytes_per_second`; 0 where the rates contain that.
struct AttentionRates {
  double depth = 1.0;
  RateSeries rates;
  double first_bytes_per_second = 0.0;

  [[nodiscard]] double seconds(double flop, double cache_bytes, double n_query_tokens) const;
};

// ggml_type numbers index the series tables.
inline constexpr int kTypeCount = 64;

// Rates of one shape of matrix, which was itself measured: what short rows, few rows or a stride cost is in them.
struct ShapeRates {
  bool is_routed = false;  // over rows per expert
  int32_t type = 0;
  int64_t n_rows = 0;     // outputs
  int64_t n_columns = 0;  // inputs
  RateSeries series;
};

// At one depth after the other, ascending. Between two depths the logarithm of the seconds is linear in that of the depth; outside of them
// the rates stay. Requires at least one.
using AttentionTable = std::vector<AttentionRates>;
[[nodiscard]] double attention_seconds(const AttentionTable& table, double flop, double cache_bytes, double n_query_tokens, double depth);

struct Processor {
  double memory_bytes_per_second = 0.0;       // streaming read that kernels reach
  double memory_peak_bytes_per_second = 0.0;  // bound
  double peak_flop_per_second = 0.0;          // bound, any type
  double op_seconds = 0.0;                    // launch or dispatch of one operation
  Basis basis = Basis::estimated;
  double spread = 0.0;
  std::array<RateSeries, kTypeCount> mul_mat;     // by weight type; empty: never measured nor interpolated
  std::array<RateSeries, kTypeCount> mul_mat_id;  // routed experts, over rows per expert
  AttentionTable attention;                       // fused attention over F16; over any cache that the next does not tell
  // Over caches that each query reads by itself, on a CPU: quantised ones by their type; of two types by both, F16 among them.
  std::array<AttentionTable, kTypeCount> attention_by_query;
  RateSeries mamba, mamba2, delta_net;    // scans of recurrent layers, over tokens; empty: priced by their bytes
  std::vector<ShapeRates> shapes;         // go before the series of their type
  std::vector<ShapeRates> copied_shapes;  // go before these where weights were just copied, and a cache still holds them
  bool skips_masked = false;              // its attention leaves out cells that are masked, as llama.cpp's CPU kernels do
  int32_t n_threads = 1;                  // that share the cells of a single query, masked ones too
};

// Bytes/s over the size of one copy, in one direction, from page-locked memory.
struct LinkCurve {
  std::vector<double> chunk_bytes;       // ascending
  std::vector<double> bytes_per_second;  // same length
  double latency_seconds = 0.0;          // set-up of one copy
  double peak_bytes_per_second = 0.0;    // bound
  Basis basis = Basis::estimated;
  double spread = 0.0;

  // Seconds for `n_bytes` in chunks of `chunk` bytes, each with its set-up, at no more than the peak. 0 bytes cost nothing, nor does a
  // machine without a GPU, which has no curve and copies nothing.
  [[nodiscard]] double seconds(double n_bytes, double chunk) const;
};

struct Machine {
  std::string name;
  bool has_gpu = false;
  Processor gpu;
  Processor cpu;  // at the thread count of the plan
  int64_t vram_bytes = 0;
  int64_t ram_bytes = 0;
  LinkCurve up;                            // host to device
  LinkCurve down;                          // device to host
  int32_t copy_engines = 1;                // 1: both directions share one engine
  double pageable_bytes_per_second = 0.0;  // host to device from memory that is not page-locked
  int64_t page_lock_bytes = 0;             // how much host memory the driver will page-lock
  double handoff_to_gpu_seconds = 0.0;     // CPU split to GPU split: synchronise and launch
  double handoff_to_cpu_seconds = 0.0;     // GPU split to CPU split
  double host_bytes_per_second = 0.0;      // DRAM, shared by CPU reads and DMA
  double cpu_rate_under_copy = 1.0;        // fraction of the CPU's rate that remains while a copy runs
  double copy_rate_under_cpu = 1.0;        // fraction of the link's rate that remains while the CPU computes
  double gpu_rate_under_copy = 1.0;        // the same of the GPU, whose memory takes the copies
  double copy_rate_under_gpu = 1.0;
};

// Throws std::invalid_argument, naming the field, unless every rate that a price divides by is positive and finite, curves are non-empty,
// ascend and stay within their link's peak, and fractions lie in (0, 1]. The GPU and its link are looked at only where there is one. Called
// once where a machine enters the core, so that nothing that prices has to look again.
void check(const Machine& machine);

}  // namespace pshard
