// Plans: for each token tier the best placement of every strategy, stock fit beside them; and for stock llama.cpp, which has one placement
// for all batches, the placement and micro-batch that finish the workload first.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cost/pass_cost.hpp"
#include "cost/switch_cost.hpp"
#include "memory/memory.hpp"
#include "plan/search.hpp"
#include "plan/stock_fit.hpp"
#include "plan/strategy.hpp"
#include "plan/workload.hpp"

namespace pshard {

struct Candidate {
  std::string strategy;
  int64_t micro_batch = 0;  // tokens of one pass: the tier's batch, or stock fit's own micro-batch
  bool viable = false;
  Knobs knobs;
  PassTime time;  // of the tier's batch
  MemoryReport memory;
  Placement placement;
  int64_t missing_vram_bytes = 0;
  int64_t missing_ram_bytes = 0;
};

struct TierPlan {
  int64_t batch_size = 0;
  int64_t kv_fill_tokens = 0;
  std::vector<Candidate> candidates;  // in the order of the strategies asked for, stock fit last
  int32_t best = -1;                  // index into candidates; -1: nothing fits
  int64_t n_priced = 0;               // placements priced
  int64_t n_replays = 0;              // blocks that the allocator was replayed for
};

// `context.n_ubatch` is the largest tier: the cache is sized for it in every tier. `fit` is stock's own decision at stock's own micro-batch
// (`fit_context`); larger tiers are priced as that many micro-batches. `allow_stock_fit` false leaves it out of the choice (a forced
// strategy), not out of the candidates. Without a machine nothing has a time and bytes alone decide: most whole layers, then most
// attention, most of a boundary layer, least VRAM (the rule of the planner pull request where it has no profile).
[[nodiscard]] TierPlan plan_tier(const Model& model, const Machine* machine, const ContextParameters& context, const Workload& workload,
                                 const Budget& budget, const std::vector<Strategy>& strategies, int64_t batch_size, const StockFit& fit,
                                 const ContextParameters& fit_context, bool allow_stock_fit);

struct WorkloadTime {
  double prompt_seconds = 0.0;
  double generate_seconds = 0.0;
  double spread_seconds = 0.0;
  Basis basis = Basis::measured;
  PassTime decode;  // one generated token
  [[nodiscard]] double total() const { return prompt_seconds + generate_seconds; }
};

// Seconds of the workload under one placement, prompt in micro-batches of context.n_ubatch.
[[nodiscard]] WorkloadTime price_workload(const Model& model, const Machine& machine, const ContextParameters& context,
                                          const Workload& workload, const Placement& placement);

struct StockPlan {
  bool viable = false;
  int64_t n_ubatch = 0;
  Knobs knobs;
  Placement placement;
  MemoryReport memory;
  WorkloadTime time;
  int64_t missing_vram_bytes = 0;
  int64_t missing_ram_bytes = 0;
};

// The stock placement that minimises prompt seconds + generate seconds, over the micro-batches given. Ties go to the smaller micro-batch.
[[nodiscard]] StockPlan plan_stock(const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload,
                                   const Budget& budget, const std::vector<int64_t>& micro_batches);

// The workload on the pshard runtime: the prompt in the tier that finishes it first, a switch, then decode in the smallest tier.
struct RuntimePlan {
  bool viable = false;
  int32_t prompt_tier = -1;  // index into the tiers
  int32_t decode_tier = -1;
  double prompt_seconds = 0.0;
  double switch_seconds = 0.0;
  int64_t switch_bytes = 0;
  double generate_seconds = 0.0;
  [[nodiscard]] double total() const { return prompt_seconds + switch_seconds + generate_seconds; }
};

// The tiers' own choices are what runs, by the runtime's rule for `n_tokens`; a switch is paid between a prompt and a decode tier that
// differ.
[[nodiscard]] RuntimePlan plan_runtime(const Model& model, const Machine& machine, const ContextParameters& context,
                                       const Workload& workload, const std::vector<TierPlan>& tiers);

}  // namespace pshard
