#include "fleet/device_order.hpp"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

namespace pshard {
namespace {

using Order = std::vector<int32_t>;

// Elementary steps that a search may take; one order takes devices^2 layers + devices layers^2 of them.
constexpr int64_t kMaxSteps = 150'000'000;
constexpr int64_t kMinOrders = 8;
constexpr uint32_t kSeed = 1;
constexpr int kSwaps = 3;
constexpr int kMaxFailures = 20;

double whole_seconds(const ChainStages& stages, int32_t device) { return stages.seconds(device, 0, stages.n_layer()); }

Order by_index(const ChainStages& stages) {
  Order order(static_cast<size_t>(stages.n_device()));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

Order by_speed(const ChainStages& stages) {
  Order order = by_index(stages);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return whole_seconds(stages, a) < whole_seconds(stages, b); });
  return order;
}

// Goes on, from `first`, to the device that is reached soonest; of several to the fastest.
Order along_links(const ChainStages& stages, int32_t first) {
  Order order = by_speed(stages);
  std::rotate(order.begin(), std::find(order.begin(), order.end(), first), std::find(order.begin(), order.end(), first) + 1);
  for (auto next = order.begin() + 1; next != order.end(); ++next) {
    const int32_t last = *(next - 1);
    const auto nearest = std::min_element(
        next, order.end(), [&](int32_t a, int32_t b) { return stages.transfer_seconds(last, a) < stages.transfer_seconds(last, b); });
    std::rotate(next, nearest, nearest + 1);
  }
  return order;
}

class OrderSearch {
 public:
  OrderSearch(const ChainStages& stages, const DeviceClasses& classes, Measure measure, bool allow_empty, double bound)
      : stages_(stages), classes_(classes), bound_(bound), program_(stages, measure, allow_empty) {
    const int64_t n_device = stages.n_device();
    const int64_t n_layer = stages.n_layer();
    const int64_t steps = n_device * n_device * n_layer + n_device * n_layer * n_layer;
    max_orders_ = std::max(kMinOrders, kMaxSteps / steps);
  }

  OrderedSolution run() {
    std::vector<Order> starts{by_index(stages_), by_speed(stages_)};
    for (const int32_t first : by_speed(stages_)) {
      if (static_cast<int64_t>(starts.size()) >= max_orders_ / 2) break;
      starts.push_back(along_links(stages_, first));
    }
    std::vector<OrderedSolution> found;
    for (const Order& start : starts) {
      if (spent()) break;
      found.push_back(solve(start));
    }
    std::stable_sort(found.begin(), found.end(), better);
    for (OrderedSolution& start : found) {
      if (spent()) break;
      improve(start);
    }
    OrderedSolution best = *std::min_element(found.begin(), found.end(), better);
    shake(best);
    best.n_orders = n_orders_;
    return best;
  }

 private:
  static bool better(const OrderedSolution& a, const OrderedSolution& b) {
    return std::pair(a.solution.value, a.seconds) < std::pair(b.solution.value, b.seconds);
  }
  [[nodiscard]] bool spent() const { return reached_ || n_orders_ >= max_orders_; }

  OrderedSolution solve(const Order& order) {
    ++n_orders_;
    OrderedSolution found{program_.in_order(order), 0.0, order, 0};
    for (size_t i = 0; i < found.solution.runs.size(); ++i) {
      const Run& run = found.solution.runs[i];
      found.seconds += stages_.seconds(run.device, run.begin, run.end);
      if (i > 0) found.seconds += stages_.transfer_seconds(found.solution.runs[i - 1].device, run.device);
    }
    reached_ = reached_ || found.solution.value <= bound_;
    return found;
  }

  // Takes each better neighbour at once, until none is left.
  void improve(OrderedSolution& current) {
    const size_t n = current.order.size();
    for (bool improved = true; improved;) {
      improved = false;
      for (size_t from = 0; from < n; ++from) {
        for (size_t to = 0; to < n; ++to) {
          if (from == to) continue;
          improved |= try_order(current, moved(current.order, from, to));
          if (from < to && !classes_.alike(current.order[from], current.order[to]))
            improved |= try_order(current, swapped(current.order, from, to));
          if (spent()) return;
        }
      }
    }
  }

  // Leaves a local optimum by a few random swaps and improves again, until that has failed often.
  void shake(OrderedSolution& best) {
    std::mt19937 random(kSeed);
    const auto any = [&] { return random() % best.order.size(); };
    for (int failures = 0; failures < kMaxFailures && !spent(); ++failures) {
      Order order = best.order;
      for (int i = 0; i < kSwaps; ++i) std::swap(order[any()], order[any()]);
      OrderedSolution candidate = solve(order);
      improve(candidate);
      if (!better(candidate, best)) continue;
      best = std::move(candidate);
      failures = 0;
    }
  }

  bool try_order(OrderedSolution& current, const Order& order) {
    OrderedSolution candidate = solve(order);
    if (!better(candidate, current)) return false;
    current = std::move(candidate);
    return true;
  }

  static Order moved(Order order, size_t from, size_t to) {
    const int32_t device = order[from];
    order.erase(order.begin() + static_cast<std::ptrdiff_t>(from));
    order.insert(order.begin() + static_cast<std::ptrdiff_t>(to), device);
    return order;
  }

  static Order swapped(Order order, size_t a, size_t b) {
    std::swap(order[a], order[b]);
    return order;
  }

  const ChainStages& stages_;
  const DeviceClasses& classes_;
  double bound_;
  StageProgram program_;
  bool reached_ = false;
  int64_t max_orders_ = 0;
  int64_t n_orders_ = 0;
};

}  // namespace

OrderedSolution search_order(const ChainStages& stages, const DeviceClasses& classes, Measure measure, bool allow_empty, double bound) {
  return OrderSearch(stages, classes, measure, allow_empty, bound).run();
}

}  // namespace pshard
