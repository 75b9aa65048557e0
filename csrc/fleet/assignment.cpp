#include "fleet/assignment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>

#include "fleet/chain_stages.hpp"
#include "fleet/device_classes.hpp"
#include "fleet/device_order.hpp"
#include "fleet/order_bound.hpp"
#include "fleet/stage_program.hpp"

namespace pshard {
namespace {

// Rounding of sums: a bound that is met to this is met.
constexpr double kRounding = 1e-12;
// The slowest stage is first looked for within so many times what it takes at least: stages that take longer need not be tried then.
constexpr double kNearLeast = 4.0;

// How the devices may follow each other; `solve` is for one measure what `assign` is for all.
class Orders {
 public:
  Orders(const Chain& chain, const ChainStages& stages, const AssignmentOptions& options)
      : stages_(stages), allow_empty_(options.allow_empty), fixed_(static_cast<size_t>(stages.n_device())) {
    std::iota(fixed_.begin(), fixed_.end(), 0);
    if (!options.search_order) return;
    classes_.emplace(chain);
    // As many states as that many devices have, all of them different.
    const int64_t max_states = (int64_t{1} << options.max_exact_order) * options.max_exact_order;
    all_ = classes_->n_states(max_states) <= max_states;
    searched_ = !all_;
    if (searched_) bound_.emplace(chain);
  }

  [[nodiscard]] bool exact() const { return exact_; }
  [[nodiscard]] int64_t n_orders() const { return n_orders_; }

  // A search settles the order: later calls keep to it.
  Solution solve(Measure measure, double limit_seconds = std::numeric_limits<double>::infinity()) {
    const double bound = bound_ ? bound_->value(measure, allow_empty_, limit_seconds) : -std::numeric_limits<double>::infinity();
    const Solution found = searched_ ? search(measure, bound) : in_known_order(measure, limit_seconds);
    if (bound_ && found.value > bound + kRounding * std::abs(bound)) exact_ = false;
    return found;
  }

 private:
  Solution in_known_order(Measure measure, double limit_seconds) {
    if (!all_) ++n_orders_;
    if (measure == Measure::slowest_seconds) {
      const Solution near = within(measure, std::min(limit_seconds, kNearLeast * stages_.least_slowest_seconds()));
      if (!near.runs.empty()) return near;
    }
    return within(measure, limit_seconds);
  }

  Solution within(Measure measure, double limit_seconds) {
    StageProgram program(stages_, measure, allow_empty_, limit_seconds);
    return all_ ? program.over_all_orders(*classes_) : program.in_order(fixed_);
  }

  Solution search(Measure measure, double bound) {
    OrderedSolution found = search_order(stages_, *classes_, measure, allow_empty_, bound * (1.0 + kRounding));
    n_orders_ += found.n_orders;
    fixed_ = found.order;
    searched_ = found.solution.runs.empty();
    return found.solution;
  }

  const ChainStages& stages_;
  bool allow_empty_;
  std::optional<DeviceClasses> classes_;  // where the order is open
  std::optional<OrderBound> bound_;       // where it is searched
  bool all_ = false;
  bool searched_ = false;
  bool exact_ = true;
  std::vector<int32_t> fixed_;
  int64_t n_orders_ = 0;
};

Solution best(Orders& orders, Objective objective) {
  if (objective == Objective::latency) return orders.solve(Measure::total_seconds);
  const Solution fastest = orders.solve(Measure::slowest_seconds);
  return fastest.runs.empty() ? fastest : orders.solve(Measure::total_seconds, fastest.value);
}

void add_stages(const ChainStages& stages, const std::vector<Run>& runs, Assignment& assignment) {
  for (const Run& run : runs) {
    Stage stage{run.device, run.begin, run.end, stages.seconds(run.device, run.begin, run.end), 0.0};
    if (!assignment.stages.empty()) stage.transfer_seconds = stages.transfer_seconds(assignment.stages.back().device, run.device);
    assignment.seconds += stage.seconds + stage.transfer_seconds;
    assignment.slowest_seconds = std::max(assignment.slowest_seconds, stage.seconds + stage.transfer_seconds);
    assignment.missing_bytes += stages.missing_bytes(run.device, run.begin, run.end);
    assignment.stages.push_back(stage);
  }
}

}  // namespace

Assignment assign(const Chain& chain, const AssignmentOptions& options) {
  constexpr int32_t kMostExactOrder = 12;  // beyond, the states of all orders fill the memory
  const ChainStages stages(chain);
  if (!options.allow_empty && chain.n_device > chain.n_layer) {
    throw std::invalid_argument(std::to_string(chain.n_device) + " devices for " + std::to_string(chain.n_layer) +
                                " layers, but every device must have one; allow empty devices, or give fewer");
  }
  if (options.max_exact_order < 0 || options.max_exact_order > kMostExactOrder) {
    throw std::invalid_argument("max_exact_order is " + std::to_string(options.max_exact_order) + "; it is between 0 and " +
                                std::to_string(kMostExactOrder));
  }
  Orders orders(chain, stages, options);
  Solution solution = best(orders, options.objective);
  Assignment assignment;
  assignment.feasible = !solution.runs.empty();
  if (!assignment.feasible) {
    solution = orders.solve(Measure::missing_bytes);
    assignment.feasible = solution.value == 0.0;  // a search for time may have missed the orders that fit
    if (assignment.feasible) solution = best(orders, options.objective);
  }
  add_stages(stages, solution.runs, assignment);
  assignment.exact = orders.exact();
  assignment.n_orders = orders.n_orders();
  return assignment;
}

}  // namespace pshard
