#include "plan/search.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <tuple>

namespace pshard {
namespace {

// What some layers under their rules weigh on each device and cost at least in each pass. Sums over pinning order make any run O(1).
struct Sums {
  int64_t gpu_weights = 0;
  int64_t gpu_cache = 0;
  int64_t host_weights = 0;
  int64_t host_cache = 0;
  std::array<PassBound, kMaxTerms> bound{};

  Sums& operator+=(const Sums& other) {
    gpu_weights += other.gpu_weights;
    gpu_cache += other.gpu_cache;
    host_weights += other.host_weights;
    host_cache += other.host_cache;
    for (size_t t = 0; t < kMaxTerms; ++t) bound[t] += other.bound[t];
    return *this;
  }
  Sums& operator-=(const Sums& other) {
    gpu_weights -= other.gpu_weights;
    gpu_cache -= other.gpu_cache;
    host_weights -= other.host_weights;
    host_cache -= other.host_cache;
    for (size_t t = 0; t < kMaxTerms; ++t) bound[t] -= other.bound[t];
    return *this;
  }
  [[nodiscard]] int64_t gpu_bytes() const { return gpu_weights + gpu_cache; }
  [[nodiscard]] int64_t host_bytes() const { return host_weights + host_cache; }
};

// Sums are taken in another order than the timeline adds, so a bound may exceed the price by rounding; this keeps it a bound.
constexpr double kRounding = 1.0 - 1e-9;

struct Excess {
  int64_t vram = 0;
  int64_t ram = 0;
  [[nodiscard]] int64_t total() const { return vram + ram; }
};

Excess excess_of(int64_t gpu_bytes, int64_t host_bytes, const Budget& budget) {
  return {std::max<int64_t>(0, gpu_bytes - budget.vram_bytes), std::max<int64_t>(0, host_bytes - budget.ram_bytes)};
}
Excess excess_of(const MemoryReport& memory, const Budget& budget) {
  return excess_of(memory.gpus.front().total(), memory.host.total(), budget);
}

class Search {
 public:
  Search(Strategy strategy, const Model& model, const ContextParameters& context, ComputeBuffers& compute, std::span<const Term> terms,
         const Budget& budget)
      : strategy_(strategy), model_(model), compute_(compute), terms_(terms), budget_(budget) {
    if (terms.size() > kMaxTerms) throw std::invalid_argument("a search takes at most three passes");
    n_layer_ = static_cast<int32_t>(model.layers().size());
    knobs_ = all_knobs(strategy, model);
    placement_.op_offload = budget.vram_bytes > 0 && uses_op_offload(strategy);
    placement_.head_op_offload = offloads_head(strategy, model);
    intern_patterns();
    sum_layers(context);
    interned_.resize(terms.size());
    for (auto& ids : interned_) ids.resize(static_cast<size_t>(n_layer_));
    placement_.layer_pattern.resize(static_cast<size_t>(n_layer_));
    sum_ends();
  }

  Found best_first(double no_slower_than) {
    rank_by_bound();
    Found best;
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
      const auto [bound, index] = queue_.back();
      queue_.pop_back();
      if (bound > (best.viable ? best.seconds : no_slower_than)) return best;
      lay_out(knobs_[index]);
      if (excess_at_least(sums_of(knobs_[index]), compute_.gpu_at_least(placement_)).total() == 0) consider(index, best);
    }
    if (!best.viable) best = closest();
    return best;
  }

  Found exhaustive() {
    Found best;
    for (size_t index = 0; index < knobs_.size(); ++index) {
      lay_out(knobs_[index]);
      consider(index, best);
    }
    if (!best.viable) best = closest();
    return best;
  }

 private:
  // Patterns 2 x rule + parity, in the placement and in each pass.
  void intern_patterns() {
    for (int rule = 0; rule < kRuleCount; ++rule) {
      for (const bool odd : {false, true}) placement_.patterns.push_back(pattern_of(strategy_, static_cast<Rule>(rule), odd));
    }
    for (const Term& term : terms_) {
      pattern_ids_.emplace_back();
      for (const LayerPlacement& pattern : placement_.patterns) pattern_ids_.back().push_back(term.cost->intern(pattern));
    }
  }

  static size_t pattern_index(Rule rule, int32_t layer) { return static_cast<size_t>(rule) * 2 + static_cast<size_t>(layer % 2); }

  // Bytes are those of the layer's class, whichever lane streams it.
  Sums class_bytes(const Layer& layer, Rule rule, const ContextParameters& context) const {
    const LayerPlacement& placement = placement_.patterns[pattern_index(rule, 0)];
    Sums sums;
    sums.gpu_weights = gpu_weight_bytes(layer, placement);
    sums.host_weights = host_weight_bytes(layer, placement);
    const int64_t cache = cache_bytes(model_, layer, context, placement[Group::cache]);
    (placement[Group::cache] == Where::pinned ? sums.gpu_cache : sums.host_cache) = cache;
    return sums;
  }

  // Only rules that the strategy's knobs lead to; every other prefix stays empty.
  void sum_layers(const ContextParameters& context) {
    std::array<bool, kRuleCount> used{};
    for (const Knobs& knobs : knobs_) {
      for (const Run& run : runs_of(strategy_, knobs, n_layer_)) used[static_cast<size_t>(run.rule)] = true;
    }
    for (size_t index = 0; index < kRuleCount; ++index) {
      if (!used[index]) continue;
      const auto rule = static_cast<Rule>(index);
      std::vector<std::optional<Sums>> by_class(static_cast<size_t>(model_.n_layer_classes()));
      std::vector<Sums> layers;
      auto& entry = entry_[index];
      int64_t floor = std::numeric_limits<int64_t>::max();
      for (int32_t number = 0; number < n_layer_; ++number) {
        const Layer& layer = model_.layers()[static_cast<size_t>(number)];
        auto& bytes = by_class[static_cast<size_t>(layer.layer_class)];
        const size_t pattern = pattern_index(rule, number);
        if (!bytes || number + 1 == n_layer_) {  // the last layer's graph is its own
          bytes = class_bytes(layer, rule, context);
          const LayerPlacement& placement = placement_.patterns[pattern];
          floor = std::min(floor, compute_.gpu_floor(static_cast<size_t>(number), placement, placement_.op_offload));
        }
        layers.push_back(*bytes);
        for (size_t t = 0; t < terms_.size(); ++t) {
          layers.back().bound[t] =
              terms_[t].cost->layer_bound(static_cast<size_t>(number), pattern_ids_[t][pattern], placement_.op_offload);
        }
        const Sums added = entry_sums(number, rule);
        layers.back() += added;
        entry.push_back(number == 0 ? Sums{} : added);  // what lies before the first layer does not depend on the run
      }
      rule_floor_[index] = floor;
      for (const bool back : {false, true}) {
        auto& prefix = prefix_[back ? 1 : 0][index];
        prefix.resize(layers.size() + 1);
        for (int32_t order = 0; order < n_layer_; ++order) {
          const auto at = static_cast<size_t>(order);
          prefix[at + 1] = prefix[at];
          prefix[at + 1] += layers[static_cast<size_t>(layer_at(order, n_layer_, back))];
        }
      }
    }
  }

  // What a layer adds behind one under the same rule: counted with the layer, and taken back for the first layer of a run.
  Sums entry_sums(int32_t layer, Rule rule) {
    Sums sums;
    const size_t before = pattern_index(rule, std::max(layer - 1, 0));
    const size_t pattern = pattern_index(rule, layer);
    for (size_t t = 0; t < terms_.size(); ++t) {
      sums.bound[t] = terms_[t].cost->bound_behind(static_cast<size_t>(layer), pattern_ids_[t][before], pattern_ids_[t][pattern],
                                                   placement_.op_offload);
    }
    return sums;
  }

  void sum_ends() {
    const bool head_op_offload = placement_.op_offload && placement_.head_op_offload;
    for (const bool on_gpu : {false, true}) {
      Sums& sums = ends_[on_gpu ? 1 : 0];
      const Where head = on_gpu ? Where::pinned : Where::cpu;
      // A few small tensors outside the layers follow the layers; here they count where they weigh least, in memory_of where they are.
      placement_.head = head;
      std::fill(placement_.layer_pattern.begin(), placement_.layer_pattern.end(), static_cast<uint8_t>(pattern_index(Rule::whole, 0)));
      const WeightBytes all_pinned = outside_weight_bytes(model_, placement_);
      std::fill(placement_.layer_pattern.begin(), placement_.layer_pattern.end(), static_cast<uint8_t>(pattern_index(Rule::rest, 0)));
      const WeightBytes none_pinned = outside_weight_bytes(model_, placement_);
      sums.gpu_weights = std::min(all_pinned.gpu_bytes, none_pinned.gpu_bytes);
      sums.host_weights = std::min(all_pinned.host_bytes, none_pinned.host_bytes);
      for (size_t t = 0; t < terms_.size(); ++t) sums.bound[t] = terms_[t].cost->ends_bound(head, head_op_offload);
      head_floor_[on_gpu ? 1 : 0] = compute_.gpu_floor_of_head(head, head_op_offload);
    }
  }

  [[nodiscard]] Sums sums_of(const Knobs& knobs) const {
    Sums sums = ends_[knobs.output_on_gpu ? 1 : 0];
    for (const Run& run : runs_of(strategy_, knobs, n_layer_)) {
      const auto& prefix = prefix_[knobs.pin_from_back ? 1 : 0][static_cast<size_t>(run.rule)];
      sums += prefix[static_cast<size_t>(run.end)];
      sums -= prefix[static_cast<size_t>(run.begin)];
      const int32_t first = knobs.pin_from_back ? n_layer_ - run.end : run.begin;
      sums -= entry_[static_cast<size_t>(run.rule)][static_cast<size_t>(first)];
    }
    return sums;
  }

  // Without a replay: weights and cache, and the least that the compute buffer can be.
  [[nodiscard]] Excess excess_at_least(const Sums& sums, int64_t compute_bytes) const {
    return excess_of(sums.gpu_bytes() + compute_bytes, sums.host_bytes(), budget_);
  }

  [[nodiscard]] int64_t compute_floor(const Knobs& knobs) const {
    int64_t floor = head_floor_[knobs.output_on_gpu ? 1 : 0];
    for (const Run& run : runs_of(strategy_, knobs, n_layer_)) floor = std::max(floor, rule_floor_[static_cast<size_t>(run.rule)]);
    return floor;
  }

  [[nodiscard]] bool uses_gpu(const Knobs& knobs) const {
    const bool streams = !uses_op_offload(strategy_);
    return streams || knobs.output_on_gpu || knobs.n_pinned > 0 || knobs.n_attn_pinned > 0;
  }

  void rank_by_bound() {
    for (size_t index = 0; index < knobs_.size(); ++index) {
      const Sums sums = sums_of(knobs_[index]);
      if (excess_at_least(sums, compute_floor(knobs_[index])).total() > 0) continue;
      double bound = 0.0;
      for (size_t t = 0; t < terms_.size(); ++t) {
        PassBound least = sums.bound[t];
        if (uses_gpu(knobs_[index])) least += terms_[t].cost->gpu_use_bound();
        bound += terms_[t].weight * least.seconds();
      }
      queue_.emplace_back(bound * kRounding, index);
    }
    std::make_heap(queue_.begin(), queue_.end(), std::greater<>());
  }

  // Lays the knobs out as pattern numbers, for the memory model and for each pass.
  void lay_out(const Knobs& knobs) {
    placement_.head = knobs.output_on_gpu ? Where::pinned : Where::cpu;
    for (const Run& run : runs_of(strategy_, knobs, n_layer_)) {
      for (int32_t order = run.begin; order < run.end; ++order) {
        const int32_t layer = layer_at(order, n_layer_, knobs.pin_from_back);
        const size_t pattern = pattern_index(run.rule, layer);
        placement_.layer_pattern[static_cast<size_t>(layer)] = static_cast<uint8_t>(pattern);
        for (size_t t = 0; t < terms_.size(); ++t) interned_[t][static_cast<size_t>(layer)] = pattern_ids_[t][pattern];
      }
    }
  }

  // Of what is laid out.
  MemoryReport memory_of(const Knobs& knobs) {
    const Sums sums = sums_of(knobs);
    const Sums& ends = ends_[knobs.output_on_gpu ? 1 : 0];
    const WeightBytes outside = outside_weight_bytes(model_, placement_);
    const ComputeBytes compute = compute_(placement_);
    MemoryReport memory;
    memory.gpus = {{.weights_bytes = sums.gpu_weights + outside.gpu_bytes - ends.gpu_weights,
                    .cache_bytes = sums.gpu_cache,
                    .compute_bytes = compute.gpu_bytes.front(),
                    .stream_bytes = compute.gpu_stream_bytes}};
    memory.host = {.weights_bytes = sums.host_weights + outside.host_bytes - ends.host_weights,
                   .cache_bytes = sums.host_cache,
                   .compute_bytes = compute.host_bytes,
                   .stream_bytes = 0};
    return memory;
  }

  // What is laid out. Replaying the allocator costs more than a price, so bytes come last.
  void consider(size_t index, Found& best) {
    const Knobs& knobs = knobs_[index];
    const double seconds = price();
    const auto rank = [](double s, const Knobs& k) { return std::tuple(s, -k.n_pinned, -k.n_attn_pinned, -static_cast<int>(k.overflow)); };
    const auto rank_of_ties = [](const MemoryReport& m, size_t i) { return std::tuple(m.gpus.front().total(), i); };
    if (best.viable && rank(seconds, knobs) > rank(best.seconds, best.knobs)) return;
    const MemoryReport memory = memory_of(knobs);
    if (excess_of(memory, budget_).total() > 0) return;
    const bool is_tied = best.viable && rank(seconds, knobs) == rank(best.seconds, best.knobs);
    if (is_tied && rank_of_ties(memory, index) >= rank_of_ties(best.memory, best_index_)) return;
    best = {.viable = true, .knobs = knobs, .seconds = seconds, .memory = memory, .missing_vram_bytes = 0, .missing_ram_bytes = 0};
    best_index_ = index;
  }

  double price() {
    double seconds = 0.0;
    for (size_t t = 0; t < terms_.size(); ++t) {
      const InternedPlacement placement{.layer_pattern = interned_[t],
                                        .head = placement_.head,
                                        .op_offload = placement_.op_offload,
                                        .head_op_offload = placement_.head_op_offload};
      seconds += terms_[t].weight * terms_[t].cost->price(placement).seconds;
    }
    return seconds;
  }

  // Nothing fits: the candidate that exceeds the budget least. Weights and cache alone bound the excess from below.
  Found closest() {
    std::vector<std::pair<int64_t, size_t>> by_excess;
    for (size_t index = 0; index < knobs_.size(); ++index) {
      by_excess.emplace_back(excess_at_least(sums_of(knobs_[index]), compute_floor(knobs_[index])).total(), index);
    }
    std::sort(by_excess.begin(), by_excess.end());
    Found found;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const auto& [bound, index] : by_excess) {
      if (bound >= least) break;
      lay_out(knobs_[index]);
      const MemoryReport memory = memory_of(knobs_[index]);
      const Excess excess = excess_of(memory, budget_);
      if (excess.total() >= least) continue;
      least = excess.total();
      found.knobs = knobs_[index];
      found.memory = memory;
      found.missing_vram_bytes = excess.vram;
      found.missing_ram_bytes = excess.ram;
    }
    return found;
  }

  Strategy strategy_;
  const Model& model_;
  ComputeBuffers& compute_;
  std::span<const Term> terms_;
  Budget budget_;
  int32_t n_layer_ = 0;
  std::vector<Knobs> knobs_;
  Placement placement_;                                              // scratch
  std::vector<std::vector<uint8_t>> interned_;                       // scratch, per term
  std::vector<std::vector<uint8_t>> pattern_ids_;                    // per term: number of each pattern
  std::array<std::array<std::vector<Sums>, kRuleCount>, 2> prefix_;  // [from back][rule][layers in pinning order]
  std::array<std::vector<Sums>, kRuleCount> entry_;                  // [rule][layer]
  std::array<int64_t, kRuleCount> rule_floor_{};                     // least compute bytes where a rule occurs
  std::array<int64_t, 2> head_floor_{};                              // [head on the GPU]
  std::array<Sums, 2> ends_;                                         // [head on the GPU]
  std::vector<std::pair<double, size_t>> queue_;                     // bound, index into knobs_
  size_t best_index_ = 0;
};

}  // namespace

Found search(Strategy strategy, const Model& model, const ContextParameters& context, ComputeBuffers& compute, std::span<const Term> terms,
             const Budget& budget, double no_slower_than) {
  return Search(strategy, model, context, compute, terms, budget).best_first(no_slower_than);
}

Found search_exhaustively(Strategy strategy, const Model& model, const ContextParameters& context, ComputeBuffers& compute,
                          std::span<const Term> terms, const Budget& budget) {
  return Search(strategy, model, context, compute, terms, budget).exhaustive();
}

}  // namespace pshard
