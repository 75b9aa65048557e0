#include "fleet/assignment.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "fleet/chain_stages.hpp"
#include "fleet/device_order.hpp"
#include "fleet/stage_program.hpp"

namespace pshard {
namespace {

// How the devices may follow each other; `solve` is for one measure what `assign` is for all.
class Orders {
 public:
  Orders(const ChainStages& stages, const AssignmentOptions& options)
      : stages_(stages), allow_empty_(options.allow_empty), fixed_(static_cast<size_t>(stages.n_device())) {
    std::iota(fixed_.begin(), fixed_.end(), 0);
    all_ = options.search_order && stages.n_device() <= options.max_exact_order;
    searched_ = options.search_order && !all_;
    was_searched_ = searched_;
  }

  [[nodiscard]] bool exact() const { return !was_searched_; }
  [[nodiscard]] int64_t n_orders() const { return n_orders_; }

  // A search settles the order: later calls keep to it.
  Solution solve(Measure measure, double limit_seconds = std::numeric_limits<double>::infinity()) {
    if (searched_) {
      OrderedSolution found = search_order(stages_, measure, allow_empty_);
      n_orders_ += found.n_orders;
      fixed_ = found.order;
      searched_ = found.solution.runs.empty();
      return found.solution;
    }
    StageProgram program(stages_, measure, allow_empty_, limit_seconds);
    if (all_) return program.over_all_orders();
    ++n_orders_;
    return program.in_order(fixed_);
  }

 private:
  const ChainStages& stages_;
  bool allow_empty_;
  bool all_ = false;
  bool searched_ = false;
  bool was_searched_ = false;
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
  Orders orders(stages, options);
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
