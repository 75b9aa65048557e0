#include "stream/packing.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace pshard {
namespace {

constexpr int64_t kEndless = int64_t{1} << 60;

int64_t up(int64_t n_bytes, int64_t alignment) { return (n_bytes + alignment - 1) / alignment * alignment; }

// Nothing lies over another at the same time, nor over what grows from the start; returns what is there at once, at most.
int64_t check(const std::vector<Tenant>& tenants, const std::vector<int64_t>& from_start, int64_t alignment, const Packing& packing) {
  std::vector<int64_t> bytes;
  for (size_t step = 0; step < from_start.size(); ++step) {
    bytes.push_back(up(from_start[step], alignment));
    EXPECT_LE(bytes.back() + packing.depth[step], packing.n_bytes);
  }
  for (size_t a = 0; a < tenants.size(); ++a) {
    EXPECT_EQ(packing.before_end[a] % alignment, 0);
    EXPECT_GE(packing.before_end[a], tenants[a].n_bytes);
    for (int32_t step = tenants[a].first; step <= tenants[a].last; ++step) {
      EXPECT_LE(packing.before_end[a], packing.depth[static_cast<size_t>(step)]);
      bytes[static_cast<size_t>(step)] += up(tenants[a].n_bytes, alignment);
    }
    for (size_t b = 0; b < a; ++b) {
      const bool meet = tenants[a].first <= tenants[b].last && tenants[b].first <= tenants[a].last;
      const bool apart = packing.before_end[a] - tenants[a].n_bytes >= packing.before_end[b] ||
                         packing.before_end[b] - tenants[b].n_bytes >= packing.before_end[a];
      EXPECT_TRUE(!meet || apart) << a << " and " << b;
    }
  }
  return *std::max_element(bytes.begin(), bytes.end());
}

TEST(Packing, OfDoubleBufferingTakesTheTwoLargestNeighbours) {
  const std::vector<int64_t> sizes{50, 10, 30, 40, 20, 10};
  std::vector<Tenant> tenants;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const auto step = static_cast<int32_t>(i);
    tenants.push_back({sizes[i], std::max(0, step - 1), step});
  }
  EXPECT_EQ(pack(tenants, std::vector<int64_t>(sizes.size(), 0), 1, 0).n_bytes, 70);
}

TEST(Packing, TakesTheRoomThatIsLeftAtTheOtherEnd) {
  const std::vector<Tenant> tenants{{100, 0, 0}, {10, 1, 1}, {50, 2, 3}};
  EXPECT_EQ(pack(tenants, {0, 90, 50, 20}, 1, 0).n_bytes, 100);
}

TEST(Packing, IsEmptyWithoutTenants) {
  const Packing packing = pack({}, {100, 200}, 128, 0);
  EXPECT_EQ(packing.n_bytes, 256);
  EXPECT_TRUE(packing.before_end.empty());
}

TEST(Packing, GoesOnOnlyUntilItIsEnough) {
  // The largest first leaves a hole here that other turns do not.
  std::mt19937 random(7);
  int n_better = 0;
  for (int i = 0; i < 200; ++i) {
    std::vector<Tenant> tenants;
    for (int t = 0; t < 12; ++t) {
      const auto first = static_cast<int32_t>(random() % 6);
      tenants.push_back({1 + static_cast<int64_t>(random() % 20), first, first + static_cast<int32_t>(random() % 3)});
    }
    const std::vector<int64_t> from_start(8, 0);
    const int64_t first_try = pack(tenants, from_start, 1, kEndless).n_bytes;
    const int64_t tight = pack(tenants, from_start, 1, 0).n_bytes;
    EXPECT_LE(tight, first_try);
    n_better += tight < first_try ? 1 : 0;
    EXPECT_EQ(pack(tenants, from_start, 1, first_try).n_bytes, first_try);
  }
  EXPECT_GT(n_better, 0);
}

TEST(Packing, NeverPutsOneOverAnother) {
  std::mt19937 random(1);
  int64_t least = 0;
  int64_t taken = 0;
  for (int i = 0; i < 200; ++i) {
    const auto n_steps = static_cast<int32_t>(1 + random() % 40);
    const int64_t alignment = i % 2 == 0 ? 128 : 1;
    std::vector<Tenant> tenants(1 + random() % 60);
    for (Tenant& tenant : tenants) {
      tenant.n_bytes = 1 + static_cast<int64_t>(random() % (i % 3 == 0 ? 100000 : 3000));
      tenant.first = static_cast<int32_t>(random() % static_cast<unsigned>(n_steps));
      tenant.last = std::min(n_steps - 1, tenant.first + static_cast<int32_t>(random() % 8));
    }
    std::vector<int64_t> from_start(static_cast<size_t>(n_steps));
    for (int64_t& n_bytes : from_start) n_bytes = static_cast<int64_t>(random() % 5000);
    const Packing packing = pack(tenants, from_start, alignment, 0);
    const int64_t at_once = check(tenants, from_start, alignment, packing);
    EXPECT_GE(packing.n_bytes, at_once);
    least += at_once;
    taken += packing.n_bytes;
  }
  EXPECT_LT(static_cast<double>(taken), 1.06 * static_cast<double>(least));
}

}  // namespace
}  // namespace pshard
