#include "plan/workload.hpp"

#include <algorithm>

namespace pshard {
namespace {

constexpr int64_t kCellStep = 256;

int64_t round_up_cells(int64_t cells) { return (cells + kCellStep - 1) / kCellStep * kCellStep; }

// A pass as it runs: reserved_pass has the settings, but room for every sequence and all cells.
Pass timed_pass(const Model& model, const ContextParameters& context, int64_t n_tokens, int64_t n_seqs, int64_t fill) {
  const CacheCells cells = cache_cells(model, context);
  Pass pass = reserved_pass(model, context, n_tokens);
  pass.n_tokens = n_tokens;
  pass.n_seqs = n_seqs;
  pass.n_streams = std::min(pass.n_streams, n_seqs);
  pass.n_outputs = n_tokens <= kLargestDecodeBatch ? n_tokens : std::min(context.n_seq_max, n_tokens);
  const int64_t read = round_up_cells(std::max<int64_t>(fill, 1));
  pass.n_kv = std::min(read, cells.full);
  pass.n_kv_window = std::min(read, cells.window);
  pass.n_filled = std::clamp<int64_t>(fill, 1, std::max<int64_t>(cells.full, 1));
  return pass;
}

}  // namespace

std::vector<int64_t> tier_ladder(const ContextParameters& context, int64_t n_draft, int64_t tier_max) {
  constexpr int64_t kLargestDefaultTier = 16384;
  constexpr int64_t kFirstPromptTier = 512;
  if (tier_max <= 0) tier_max = std::max(context.n_batch, kLargestDefaultTier);
  tier_max = std::min(tier_max, context.n_ctx);
  std::vector<int64_t> tiers = context.n_seq_max > 1 ? std::vector<int64_t>{1, 4, 16, 32, 64} : std::vector<int64_t>{1, 16};
  if (n_draft > 0) tiers.push_back(n_draft + 1);
  for (int64_t tier = kFirstPromptTier; tier < tier_max; tier *= 2) tiers.push_back(tier);
  tiers.push_back(tier_max);
  std::erase_if(tiers, [&](int64_t tier) { return tier > tier_max; });
  std::sort(tiers.begin(), tiers.end());
  tiers.erase(std::unique(tiers.begin(), tiers.end()), tiers.end());
  return tiers;
}

int64_t mean_fill(const Model& model, const ContextParameters& context, const Workload& workload, int64_t n_tokens) {
  const int64_t cells = cache_cells(model, context).full;
  const int64_t fill = n_tokens <= kLargestDecodeBatch ? workload.prompt_tokens + workload.generate_tokens / 2
                                                       : std::max(n_tokens, (workload.prompt_tokens + n_tokens) / 2);
  return cells > 0 ? std::clamp<int64_t>(fill, 1, cells) : 0;
}

Pass tier_pass(const Model& model, const ContextParameters& context, const Workload& workload, int64_t n_tokens) {
  return timed_pass(model, context, n_tokens, std::min(context.n_seq_max, n_tokens), mean_fill(model, context, workload, n_tokens));
}

std::vector<WeightedPass> prompt_passes(const Model& model, const ContextParameters& context, const Workload& workload, int64_t n_ubatch) {
  std::vector<WeightedPass> passes;
  const int64_t full = workload.prompt_tokens / n_ubatch;
  const int64_t rest = workload.prompt_tokens % n_ubatch;
  if (full > 0) {
    // The i-th micro-batch reads i * n_ubatch cells; the cost is linear in them, so the mean stands for all.
    WeightedPass weighted{timed_pass(model, context, n_ubatch, 1, (full + 1) * n_ubatch / 2), static_cast<double>(full)};
    weighted.pass.n_outputs = 1;
    passes.push_back(weighted);
  }
  if (rest > 0) {
    WeightedPass weighted{timed_pass(model, context, rest, 1, workload.prompt_tokens), 1.0};
    weighted.pass.n_outputs = 1;
    passes.push_back(weighted);
  }
  return passes;
}

}  // namespace pshard
