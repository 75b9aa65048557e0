#include "fleet/order_bound.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace pshard {
namespace {

constexpr int64_t kMaxStates = 1 << 13;

Chain with_shortest_transfers(Chain chain) {
  if (chain.transfer_seconds.empty()) return chain;
  double shortest = std::numeric_limits<double>::infinity();
  const auto n = static_cast<size_t>(chain.n_device);
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      if (from != to) shortest = std::min(shortest, chain.transfer_seconds[from * n + to]);
    }
  }
  std::fill(chain.transfer_seconds.begin(), chain.transfer_seconds.end(), shortest);
  return chain;
}

}  // namespace

OrderBound::OrderBound(const Chain& chain) : relaxed_(with_shortest_transfers(chain)), stages_(relaxed_), classes_(relaxed_) {}

double OrderBound::value(Measure measure, bool allow_empty, double limit_seconds) const {
  if (classes_.n_states(kMaxStates) > kMaxStates) return -std::numeric_limits<double>::infinity();
  return StageProgram(stages_, measure, allow_empty, limit_seconds).over_all_orders(classes_).value;
}

}  // namespace pshard
