#include "fleet/order_bound.hpp"

#include <gtest/gtest.h>

#include <limits>

namespace pshard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Equal devices in hosts of four, with memory for one layer more than an even part.
Chain hosts_of_four(int64_t n_layer, int32_t n_device) {
  Chain chain;
  chain.n_layer = n_layer;
  chain.n_device = n_device;
  const auto n = static_cast<size_t>(n_layer * n_device);
  chain.layer_seconds.assign(n, 1.0);
  chain.layer_bytes.assign(n, 1);
  chain.capacity_bytes.assign(static_cast<size_t>(n_device), n_layer / n_device + 1);
  for (int from = 0; from < n_device; ++from) {
    for (int to = 0; to < n_device; ++to) chain.transfer_seconds.push_back(from / 4 == to / 4 ? 0.25 : 0.5);
  }
  return chain;
}

TEST(OrderBound, IsTheBestOfAllOrdersWithTheShortestTransfers) {
  const Chain chain = hosts_of_four(64, 32);
  const OrderBound bound(chain);
  // Three layers on each of 22 devices, and 21 transfers.
  EXPECT_DOUBLE_EQ(bound.value(Measure::total_seconds, true, kInfinity), 64.0 + 21 * 0.25);
  EXPECT_DOUBLE_EQ(bound.value(Measure::slowest_seconds, true, kInfinity), 2.25);
  EXPECT_DOUBLE_EQ(bound.value(Measure::missing_bytes, true, kInfinity), 0.0);
}

TEST(OrderBound, IsReachedOrTheOrderIsNotCalledExact) {
  for (const int32_t n_device : {16, 24, 32}) {
    for (const Objective objective : {Objective::latency, Objective::throughput}) {
      const Chain chain = hosts_of_four(64, n_device);
      const Assignment found = assign(chain, {.objective = objective, .search_order = true});
      ASSERT_TRUE(found.feasible);
      const OrderBound bound(chain);
      const bool is_latency = objective == Objective::latency;
      const double least = bound.value(is_latency ? Measure::total_seconds : Measure::slowest_seconds, true, kInfinity);
      const double value = is_latency ? found.seconds : found.slowest_seconds;
      EXPECT_GE(value, least - 1e-12);
      if (value > least + 1e-9) {
        EXPECT_FALSE(found.exact);
      }
    }
  }
}

TEST(OrderBound, IsNoneWhereKindsAreTooMany) {
  Chain chain = hosts_of_four(64, 32);
  for (int32_t device = 0; device < 32; ++device) chain.entry_seconds.push_back(device * 0.01);
  EXPECT_EQ(OrderBound(chain).value(Measure::total_seconds, true, kInfinity), -kInfinity);
}

}  // namespace
}  // namespace pshard
