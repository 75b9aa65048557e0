// The best placement of one strategy for a weighted sum of passes under a byte budget.
//
// Branch and bound over all knobs of the strategy. Bytes and a lower bound of the time come from sums over pinning order in constant time
// per candidate. Candidates are then taken by rising bound: those whose compute buffers cannot fit are left out, the timeline of the others
// is priced, and the allocator replayed for those that would win, until no bound can beat the best. So the choice is that of pricing every
// placement, ties included, while few are priced. Nothing in the loop allocates.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "cost/pass_cost.hpp"
#include "memory/compute_buffers.hpp"
#include "memory/memory.hpp"
#include "plan/strategy.hpp"

namespace pshard {

struct Budget {
  int64_t vram_bytes = 0;  // 0: no GPU, everything on the CPU
  int64_t ram_bytes = 0;
};

// What a placement is chosen for: the sum over terms of weight x seconds of a pass.
struct Term {
  PassCost* cost = nullptr;
  double weight = 1.0;
};

struct Found {
  bool viable = false;
  Knobs knobs;           // of the best placement; of the one that misses least where none is viable
  double seconds = 0.0;  // the objective
  MemoryReport memory;
  int64_t missing_vram_bytes = 0;  // how much the best candidate exceeds the budget by; 0 where viable
  int64_t missing_ram_bytes = 0;
};

// `context` sizes the cache, `compute` the buffers at the graph's batch; `terms` (at most kMaxTerms; none: only what fits counts) give the
// time. Deterministic; ties:
// more whole layers, more attention, more of the boundary layer, less VRAM, then the order of all_knobs.
// A placement slower than `no_slower_than` is of no use to the caller: the search may end without a viable result where all are.
inline constexpr size_t kMaxTerms = 3;
[[nodiscard]] Found search(Strategy strategy, const Model& model, const ContextParameters& context, ComputeBuffers& compute,
                           std::span<const Term> terms, const Budget& budget,
                           double no_slower_than = std::numeric_limits<double>::infinity());

// The same choice by pricing every placement: the yardstick of the tests, hundreds of times slower.
[[nodiscard]] Found search_exhaustively(Strategy strategy, const Model& model, const ContextParameters& context, ComputeBuffers& compute,
                                        std::span<const Term> terms, const Budget& budget);

}  // namespace pshard
