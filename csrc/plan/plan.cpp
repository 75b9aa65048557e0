#include "plan/plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <tuple>

namespace pshard {
namespace {

void scale(PassTime& time, double factor) {
  time.seconds *= factor;
  time.spread_seconds *= factor;
  for (double& seconds : time.busy_seconds) seconds *= factor;
  for (double& seconds : time.critical_seconds) seconds *= factor;
  time.n_splits = std::llround(static_cast<double>(time.n_splits) * factor);
  time.weights_up_bytes *= factor;
  time.activation_bytes *= factor;
  time.write_back_bytes *= factor;
}

bool fits(const MemoryReport& memory, const Budget& budget) {
  return memory.gpu().total() <= budget.vram_bytes && memory.host.total() <= budget.ram_bytes;
}

Candidate stock_fit_candidate(const ContextParameters& context, const Budget& budget, int64_t batch_size, const StockFit& fit) {
  Candidate candidate;
  candidate.strategy = "STOCK_FIT";
  candidate.micro_batch = std::min(batch_size, context.n_ubatch);
  candidate.placement = fit.placement;
  candidate.memory = fit.memory;
  candidate.viable = fits(fit.memory, budget);
  candidate.missing_vram_bytes = std::max<int64_t>(0, fit.memory.gpu().total() - budget.vram_bytes);
  candidate.missing_ram_bytes = std::max<int64_t>(0, fit.memory.host.total() - budget.ram_bytes);
  for (size_t layer = 0; layer < fit.placement.layer_pattern.size(); ++layer) {
    const LayerPlacement& where = fit.placement.layer(layer);
    candidate.knobs.n_pinned += where == LayerPlacement::uniform(Where::pinned) ? 1 : 0;
    candidate.knobs.n_attn_pinned += where[Group::cache] == Where::pinned ? 1 : 0;
  }
  candidate.knobs.overflow = fit.layers.empty() ? Overflow::none : fit.layers.front().overflow;
  candidate.knobs.output_on_gpu = is_pinned(fit.placement.head);
  candidate.knobs.pin_from_back = true;
  return candidate;
}

// Stock fit in a tier: as many of its own micro-batches as make the tier's batch, over as many cells as the tier reads.
PassTime stock_fit_time(const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload,
                        int64_t batch_size, const StockFit& fit, const Pass& tier) {
  const int64_t n_ubatch = std::min(batch_size, context.n_ubatch);
  Pass pass = tier_pass(model, context, workload, n_ubatch);
  pass.n_kv = tier.n_kv;
  pass.n_filled = tier.n_filled;
  pass.n_kv_window = std::min(tier.n_kv_window, pass.n_kv_window);
  PassTime time = PassCost(model, machine, pass).price(fit.placement);
  if (n_ubatch < batch_size) scale(time, static_cast<double>(batch_size) / static_cast<double>(n_ubatch));
  return time;
}

// Smaller is better; without a machine, all seconds are 0.
auto rank(const Candidate& candidate) {
  const Knobs& knobs = candidate.knobs;
  const bool by_bytes = candidate.time.seconds == 0.0;
  return by_bytes
             ? std::tuple(0.0, -knobs.n_pinned, -knobs.n_attn_pinned, -static_cast<int>(knobs.overflow), candidate.memory.gpu().total())
             : std::tuple(candidate.time.seconds, 0, 0, 0, int64_t{0});
}

}  // namespace

TierPlan plan_tier(const Model& model, const Machine* machine, const ContextParameters& context, const Workload& workload,
                   const Budget& budget, const std::vector<Strategy>& strategies, int64_t batch_size, const StockFit& fit,
                   const ContextParameters& fit_context, bool allow_stock_fit) {
  TierPlan tier;
  tier.batch_size = batch_size;
  tier.kv_fill_tokens = mean_fill(model, context, workload, batch_size);
  std::optional<PassCost> cost;
  if (machine != nullptr) cost.emplace(model, *machine, tier_pass(model, context, workload, batch_size));
  ComputeBuffers compute(model, context, batch_size);
  const Term term{cost ? &*cost : nullptr, 1.0};
  const std::span<const Term> terms(&term, cost ? 1 : 0);
  const bool has_gpu = machine != nullptr ? machine->has_gpu : budget.vram_bytes > 0;
  for (const Strategy strategy : strategies) {
    const Found found = search(strategy, model, context, compute, terms, budget);
    Candidate candidate;
    candidate.strategy = to_string(strategy);
    candidate.micro_batch = batch_size;
    candidate.viable = found.viable;
    candidate.knobs = found.knobs;
    candidate.memory = found.memory;
    candidate.placement = make_placement(strategy, found.knobs, model, has_gpu);
    candidate.missing_vram_bytes = found.missing_vram_bytes;
    candidate.missing_ram_bytes = found.missing_ram_bytes;
    if (found.viable && cost) candidate.time = cost->price(candidate.placement);
    tier.candidates.push_back(std::move(candidate));
  }
  tier.candidates.push_back(stock_fit_candidate(fit_context, budget, batch_size, fit));
  if (cost) tier.candidates.back().time = stock_fit_time(model, *machine, fit_context, workload, batch_size, fit, cost->pass());
  const size_t n_eligible = tier.candidates.size() - (allow_stock_fit ? 0 : 1);
  for (size_t i = 0; i < n_eligible; ++i) {
    const Candidate& candidate = tier.candidates[i];
    if (!candidate.viable) continue;
    if (tier.best < 0 || rank(candidate) < rank(tier.candidates[static_cast<size_t>(tier.best)])) tier.best = static_cast<int32_t>(i);
  }
  tier.n_priced = cost ? cost->n_priced() : 0;
  tier.n_replays = compute.n_replays();
  return tier;
}

WorkloadTime price_workload(const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload,
                            const Placement& placement) {
  WorkloadTime time;
  for (const WeightedPass& weighted : prompt_passes(model, context, workload, context.n_ubatch)) {
    const PassTime pass = PassCost(model, machine, weighted.pass).price(placement);
    time.prompt_seconds += weighted.count * pass.seconds;
    time.spread_seconds += weighted.count * pass.spread_seconds;
    time.basis = std::max(time.basis, pass.basis);
  }
  time.decode = PassCost(model, machine, tier_pass(model, context, workload, 1)).price(placement);
  const auto n_generated = static_cast<double>(workload.generate_tokens);
  time.generate_seconds = n_generated * time.decode.seconds;
  time.spread_seconds += n_generated * time.decode.spread_seconds;
  time.basis = std::max(time.basis, time.decode.basis);
  return time;
}

StockPlan plan_stock(const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload,
                     const Budget& budget, const std::vector<int64_t>& micro_batches) {
  StockPlan best;
  PassCost decode(model, machine, tier_pass(model, context, workload, 1));
  for (const int64_t n_ubatch : micro_batches) {
    ContextParameters sized = context;
    sized.n_ubatch = n_ubatch;
    sized.n_batch = std::max(context.n_batch, n_ubatch);
    std::vector<PassCost> prompt;
    std::vector<Term> terms{{&decode, static_cast<double>(workload.generate_tokens)}};
    const std::vector<WeightedPass> passes = prompt_passes(model, sized, workload, n_ubatch);
    prompt.reserve(passes.size());
    for (const WeightedPass& weighted : passes) {
      prompt.emplace_back(model, machine, weighted.pass);
      terms.push_back({&prompt.back(), weighted.count});
    }
    ComputeBuffers compute(model, sized, n_ubatch);
    const double to_beat = best.viable ? best.time.total() : std::numeric_limits<double>::infinity();
    const Found found = search(Strategy::stock, model, sized, compute, terms, budget, to_beat);
    if (best.viable && !found.viable) continue;
    StockPlan plan;
    plan.viable = found.viable;
    plan.n_ubatch = n_ubatch;
    plan.knobs = found.knobs;
    plan.memory = found.memory;
    plan.missing_vram_bytes = found.missing_vram_bytes;
    plan.missing_ram_bytes = found.missing_ram_bytes;
    plan.placement = make_placement(Strategy::stock, found.knobs, model, machine.has_gpu);
    if (plan.viable) plan.time = price_workload(model, machine, sized, workload, plan.placement);
    const bool first = best.n_ubatch == 0;
    const bool better =
        plan.viable ? !best.viable || plan.time.total() < best.time.total()
                    : !best.viable && plan.missing_vram_bytes + plan.missing_ram_bytes < best.missing_vram_bytes + best.missing_ram_bytes;
    if (first || better) best = std::move(plan);
  }
  return best;
}

namespace {

bool viable(const TierPlan& tier) { return tier.best >= 0; }

const Candidate& chosen(const TierPlan& tier) { return tier.candidates[static_cast<size_t>(tier.best)]; }

// Tiers that the runtime may run the prompt in: from kFirstPromptTier tokens on, it weighs the viable prompt tiers up to the smallest that
// covers the prompt; below, it takes the smallest that covers it. The largest viable tier where none does.
std::vector<size_t> prompt_tiers(const std::vector<TierPlan>& tiers, int64_t prompt_tokens) {
  std::vector<size_t> possible;
  size_t largest = 0;
  for (size_t i = 0; i < tiers.size(); ++i) {
    if (!viable(tiers[i])) continue;
    const bool covers = tiers[i].batch_size >= prompt_tokens;
    const bool weighed = prompt_tokens > kLargestDecodeBatch && tiers[i].batch_size > kLargestDecodeBatch;
    if (covers || weighed) possible.push_back(i);
    if (covers) return possible;
    largest = i;
  }
  if (possible.empty()) possible.push_back(largest);
  return possible;
}

// Of each layer's cache, the prompt's share moves in a switch; recurrent state moves whole.
std::vector<int64_t> filled_cache_bytes(const Model& model, const ContextParameters& context, int64_t prompt_tokens) {
  std::vector<int64_t> bytes;
  const CacheCells cells = cache_cells(model, context);
  for (const Layer& layer : model.layers()) {
    const int64_t whole = cache_bytes(model, layer, context);
    const int64_t length = layer.parameters.window > 0 ? cells.window : cells.full;
    const bool recurrent = layer.parameters.scan_state + layer.parameters.conv_state > 0;
    bytes.push_back(recurrent || length == 0 ? whole : whole / length * std::min(length, prompt_tokens));
  }
  return bytes;
}

}  // namespace

RuntimePlan plan_runtime(const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload,
                         const std::vector<TierPlan>& tiers) {
  RuntimePlan best;
  const auto smallest = std::find_if(tiers.begin(), tiers.end(), viable);
  if (smallest == tiers.end()) return best;
  const Candidate& decode = chosen(*smallest);
  const std::vector<int64_t> cache = filled_cache_bytes(model, context, workload.prompt_tokens);
  for (const size_t index : prompt_tiers(tiers, workload.prompt_tokens)) {
    const Candidate& prompt = chosen(tiers[index]);
    RuntimePlan plan;
    plan.viable = true;
    plan.prompt_tier = static_cast<int32_t>(index);
    plan.decode_tier = static_cast<int32_t>(smallest - tiers.begin());
    if (workload.prompt_tokens > 0) {
      ContextParameters sized = context;
      sized.n_ubatch = prompt.micro_batch;  // stock fit keeps its own in larger tiers
      plan.prompt_seconds = price_workload(model, machine, sized, workload, prompt.placement).prompt_seconds;
    }
    if (workload.prompt_tokens > 0 && workload.generate_tokens > 0 && plan.prompt_tier != plan.decode_tier) {
      const SwitchCost change = switch_cost(model, machine, prompt.placement, decode.placement, cache);
      plan.switch_seconds = change.seconds;
      plan.switch_bytes = change.up_bytes + change.down_bytes;
    }
    plan.generate_seconds = static_cast<double>(workload.generate_tokens) * decode.time.seconds;
    if (!best.viable || plan.total() < best.total()) best = plan;
  }
  return best;
}

}  // namespace pshard
