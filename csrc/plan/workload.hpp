// What the machine is asked to do: a prompt of so many tokens, then so many generated ones; and the passes that this makes.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/memory.hpp"
#include "model/forward.hpp"

namespace pshard {

struct Workload {
  int64_t prompt_tokens = 2048;
  int64_t generate_tokens = 256;
};

// Passes of one kind and how many of them the workload needs.
struct WeightedPass {
  Pass pass;
  double count = 1.0;
};

// Batches up to this many tokens generate or verify, so each of their tokens wants logits; larger ones are prompt.
inline constexpr int64_t kLargestDecodeBatch = 511;

// Token tiers of the pshard runtime (planner pull request, section "token tiers"): 1, 16, n_draft + 1, then 512 doubling up to `tier_max`,
// itself included; several sequences: 1, 4, 16, 32, 64 before the prompt tiers. Ascending, without repeats. tier_max <= 0: the larger of
// n_batch and 16384, at most n_ctx.
[[nodiscard]] std::vector<int64_t> tier_ladder(const ContextParameters& context, int64_t n_draft, int64_t tier_max);

// Cells of the KV cache that a pass of `n_tokens` reads on average over the workload, per sequence: the prompt and half of what is
// generated for a decode pass; half way through the prompt for a prompt pass.
[[nodiscard]] int64_t mean_fill(const Model& model, const ContextParameters& context, const Workload& workload, int64_t n_tokens);

// The pass that a tier of `n_tokens` runs, over as many sequences as it has tokens for, at that fill. llama.cpp reads cells in steps of
// 256.
[[nodiscard]] Pass tier_pass(const Model& model, const ContextParameters& context, const Workload& workload, int64_t n_tokens);

// The prompt of one sequence in micro-batches of `n_ubatch`: the full ones at their mean fill, and the rest.
[[nodiscard]] std::vector<WeightedPass> prompt_passes(const Model& model, const ContextParameters& context, const Workload& workload,
                                                      int64_t n_ubatch);

}  // namespace pshard
