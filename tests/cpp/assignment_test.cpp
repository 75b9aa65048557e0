#include "fleet/assignment.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>

namespace pshard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Chain even_chain(int64_t n_layer, int32_t n_device, double layer_seconds, int64_t layer_bytes, int64_t capacity_bytes) {
  Chain chain;
  chain.n_layer = n_layer;
  chain.n_device = n_device;
  const auto n = static_cast<size_t>(n_layer * n_device);
  chain.layer_seconds.assign(n, layer_seconds);
  chain.layer_bytes.assign(n, layer_bytes);
  chain.capacity_bytes.assign(static_cast<size_t>(n_device), capacity_bytes);
  return chain;
}

std::vector<int64_t> counts(const Assignment& assignment, int32_t n_device) {
  std::vector<int64_t> result(static_cast<size_t>(n_device), 0);
  for (const Stage& stage : assignment.stages) result[static_cast<size_t>(stage.device)] = stage.end - stage.begin;
  return result;
}

// Every way to give runs to devices, in every order: what `assign` must find without trying them.
class BruteForce {
 public:
  BruteForce(const Chain& chain, const AssignmentOptions& options) : chain_(chain), options_(options) {
    used_.assign(static_cast<size_t>(chain.n_device), false);
    extend(-1, 0, 0.0, 0.0, 0);
  }
  double seconds = kInfinity;
  double slowest = kInfinity;
  int64_t missing = std::numeric_limits<int64_t>::max();

 private:
  void extend(int32_t last, int64_t done, double total, double greatest, int64_t lacking) {
    if (done == chain_.n_layer) {
      if (!options_.allow_empty && std::count(used_.begin(), used_.end(), false) > 0) return;
      missing = std::min(missing, lacking);
      if (lacking > 0) return;
      const bool is_better =
          options_.objective == Objective::latency ? total < seconds : std::pair(greatest, total) < std::pair(slowest, seconds);
      if (is_better) {
        seconds = total;
        slowest = greatest;
      }
      return;
    }
    for (int32_t device = options_.search_order ? 0 : last + 1; device < chain_.n_device; ++device) {
      const auto d = static_cast<size_t>(device);
      if (used_[d]) continue;
      used_[d] = true;
      const double transfer =
          last < 0 || chain_.transfer_seconds.empty() ? 0.0 : chain_.transfer_seconds[static_cast<size_t>(last * chain_.n_device + device)];
      for (int64_t end = done + 1; end <= chain_.n_layer; ++end) {
        const double busy = stage_seconds(d, done, end) + transfer;
        extend(device, end, total + busy, std::max(greatest, busy), lacking + stage_missing(device, done, end));
      }
      used_[d] = false;
    }
  }

  double stage_seconds(size_t device, int64_t begin, int64_t end) const {
    double sum = 0.0;
    for (int64_t i = begin; i < end; ++i) sum += chain_.layer_seconds[static_cast<size_t>(i * chain_.n_device) + device];
    if (begin == 0 && !chain_.entry_seconds.empty()) sum += chain_.entry_seconds[device];
    if (end == chain_.n_layer && !chain_.exit_seconds.empty()) sum += chain_.exit_seconds[device];
    return sum;
  }

  int64_t stage_missing(int32_t device, int64_t begin, int64_t end) const {
    int64_t lacking = 0;
    const size_t n_memory = chain_.capacity_bytes.size();
    for (size_t m = 0; m < n_memory; ++m) {
      if ((chain_.memory_device.empty() ? static_cast<int32_t>(m) : chain_.memory_device[m]) != device) continue;
      int64_t sum = chain_.fixed_bytes.empty() ? 0 : chain_.fixed_bytes[m];
      for (int64_t i = begin; i < end; ++i) sum += chain_.layer_bytes[static_cast<size_t>(i) * n_memory + m];
      if (begin == 0 && !chain_.entry_bytes.empty()) sum += chain_.entry_bytes[m];
      if (end == chain_.n_layer && !chain_.exit_bytes.empty()) sum += chain_.exit_bytes[m];
      lacking += std::max<int64_t>(0, sum - chain_.capacity_bytes[m]);
    }
    return lacking;
  }

  const Chain& chain_;
  const AssignmentOptions& options_;
  std::vector<bool> used_;
};

class RandomChains {
 public:
  explicit RandomChains(uint32_t seed) : random_(seed) {}

  Chain next(int64_t max_layers, int32_t max_devices) {
    Chain chain;
    chain.n_layer = integer(1, max_layers);
    chain.n_device = static_cast<int32_t>(integer(1, max_devices));
    const int64_t n_device = chain.n_device;
    const bool shares = integer(0, 3) == 0;
    if (shares) {
      for (int32_t d = 0; d < chain.n_device; ++d) {
        for (int64_t k = integer(1, 2); k > 0; --k) chain.memory_device.push_back(d);
      }
    }
    const int64_t n_memory = shares ? static_cast<int64_t>(chain.memory_device.size()) : n_device;
    chain.layer_seconds = seconds(chain.n_layer * n_device);
    chain.layer_bytes = bytes(chain.n_layer * n_memory, 1, 20);
    chain.capacity_bytes = bytes(n_memory, 0, 30 * chain.n_layer / n_device + 20);
    if (integer(0, 1) == 1) chain.transfer_seconds = seconds(n_device * n_device);
    if (integer(0, 1) == 1) chain.entry_seconds = seconds(n_device);
    if (integer(0, 1) == 1) chain.exit_seconds = seconds(n_device);
    if (integer(0, 1) == 1) chain.fixed_bytes = bytes(n_memory, 0, 10);
    if (integer(0, 1) == 1) chain.entry_bytes = bytes(n_memory, 0, 20);
    if (integer(0, 1) == 1) chain.exit_bytes = bytes(n_memory, 0, 20);
    return chain;
  }

  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }

 private:
  // Eighths, so that sums are exact in any order and ties are real.
  std::vector<double> seconds(int64_t n) {
    std::vector<double> values;
    for (int64_t i = 0; i < n; ++i) values.push_back(static_cast<double>(integer(0, 40)) / 8.0);
    return values;
  }
  std::vector<int64_t> bytes(int64_t n, int64_t low, int64_t high) {
    std::vector<int64_t> values;
    for (int64_t i = 0; i < n; ++i) values.push_back(integer(low, high));
    return values;
  }

  std::mt19937 random_;
};

TEST(Assign, FillsNoDeviceBeyondItsCapacity) {
  const Chain chain = even_chain(10, 3, 1.0, 100, 450);
  const Assignment assignment = assign(chain, {});
  ASSERT_TRUE(assignment.feasible);
  for (const int64_t n : counts(assignment, 3)) EXPECT_LE(n, 4);
  EXPECT_DOUBLE_EQ(assignment.seconds, 10.0);
}

TEST(Assign, GivesOneStreamToTheFastestDevices) {
  Chain chain = even_chain(10, 2, 1.0, 100, 10000);
  for (size_t i = 0; i < 10; ++i) chain.layer_seconds[2 * i + 1] = 0.5;
  EXPECT_EQ(counts(assign(chain, {}), 2), std::vector<int64_t>({0, 10}));
}

TEST(Assign, LevelsAPipelineBySpeed) {
  Chain chain = even_chain(12, 2, 1.0, 100, 10000);
  for (size_t i = 0; i < 12; ++i) chain.layer_seconds[2 * i + 1] = 0.5;
  const Assignment assignment = assign(chain, {.objective = Objective::throughput});
  EXPECT_EQ(counts(assignment, 2), std::vector<int64_t>({4, 8}));
  EXPECT_DOUBLE_EQ(assignment.slowest_seconds, 4.0);
}

TEST(Assign, CountsWhatATransferCosts) {
  Chain chain = even_chain(10, 2, 1.0, 100, 1000);
  for (size_t i = 0; i < 10; ++i) chain.layer_seconds[2 * i + 1] = 0.5;
  chain.capacity_bytes = {1000, 300};  // three layers on the faster device save 1.5
  chain.transfer_seconds = {0.0, 1.0, 1.0, 0.0};
  EXPECT_EQ(counts(assign(chain, {}), 2), std::vector<int64_t>({7, 3}));
  chain.transfer_seconds = {0.0, 2.0, 2.0, 0.0};
  EXPECT_EQ(counts(assign(chain, {}), 2), std::vector<int64_t>({10, 0}));
}

TEST(Assign, FindsTheOrderThatTheLinksWant) {
  Chain chain = even_chain(9, 3, 1.0, 100, 300);
  // 0 and 1 are far from each other, 2 is near both.
  chain.transfer_seconds = {0.0, 9.0, 1.0, 9.0, 0.0, 1.0, 1.0, 1.0, 0.0};
  EXPECT_DOUBLE_EQ(assign(chain, {}).seconds, 9.0 + 10.0);
  const Assignment assignment = assign(chain, {.search_order = true});
  EXPECT_DOUBLE_EQ(assignment.seconds, 9.0 + 2.0);
  EXPECT_EQ(assignment.stages[1].device, 2);
  EXPECT_TRUE(assignment.exact);
}

TEST(Assign, SaysHowManyBytesAreMissing) {
  const Assignment assignment = assign(even_chain(10, 2, 1.0, 100, 480), {});
  EXPECT_FALSE(assignment.feasible);
  EXPECT_EQ(assignment.missing_bytes, 1000 - 2 * 480);
}

TEST(Assign, AMissingByteIsAMissingByte) {
  EXPECT_EQ(assign(even_chain(10, 1, 1.0, 100, 999), {}).missing_bytes, 1);
  EXPECT_TRUE(assign(even_chain(10, 1, 1.0, 100, 1000), {}).feasible);
}

TEST(Assign, EveryMemoryOfADeviceBindsIt) {
  Chain chain = even_chain(4, 1, 1.0, 0, 0);
  chain.memory_device = {0, 0};
  chain.layer_bytes = {10, 30, 10, 30, 10, 30, 10, 30};
  chain.capacity_bytes = {40, 120};
  EXPECT_TRUE(assign(chain, {}).feasible);
  chain.capacity_bytes = {40, 119};
  EXPECT_EQ(assign(chain, {}).missing_bytes, 1);
}

TEST(Assign, UsesEveryDeviceWhereNoneMayBeEmpty) {
  Chain chain = even_chain(4, 3, 1.0, 1, 100);
  chain.transfer_seconds.assign(9, 5.0);
  EXPECT_EQ(counts(assign(chain, {}), 3), std::vector<int64_t>({4, 0, 0}));
  const auto all = counts(assign(chain, {.allow_empty = false}), 3);
  EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](int64_t n) { return n > 0; }));
}

TEST(Assign, TiesGoToTheLowestIndex) {
  EXPECT_EQ(counts(assign(even_chain(4, 3, 1.0, 1, 100), {.search_order = true}), 3), std::vector<int64_t>({4, 0, 0}));
}

TEST(Assign, RefusesTablesThatDoNotFit) {
  Chain chain = even_chain(4, 2, 1.0, 1, 100);
  EXPECT_THROW((void)assign(Chain{}, {}), std::invalid_argument);
  chain.layer_bytes.pop_back();
  EXPECT_THROW((void)assign(chain, {}), std::invalid_argument);
  chain = even_chain(4, 2, kInfinity, 1, 100);
  EXPECT_THROW((void)assign(chain, {}), std::invalid_argument);
  chain = even_chain(4, 2, 1.0, -1, 100);
  EXPECT_THROW((void)assign(chain, {}), std::invalid_argument);
  EXPECT_THROW((void)assign(even_chain(2, 3, 1.0, 1, 100), {.allow_empty = false}), std::invalid_argument);
}

TEST(Assign, FindsWhatBruteForceFinds) {
  RandomChains random(7);
  for (int i = 0; i < 4000; ++i) {
    const Chain chain = random.next(7, 4);
    AssignmentOptions options;
    options.objective = random.integer(0, 1) == 0 ? Objective::latency : Objective::throughput;
    options.search_order = random.integer(0, 1) == 1;
    options.allow_empty = chain.n_device > chain.n_layer || random.integer(0, 2) > 0;
    const BruteForce wanted(chain, options);
    const Assignment found = assign(chain, options);
    ASSERT_EQ(found.feasible, wanted.seconds < kInfinity) << "case " << i;
    ASSERT_EQ(found.missing_bytes, wanted.missing) << "case " << i;
    if (!found.feasible) continue;
    ASSERT_DOUBLE_EQ(found.seconds, wanted.seconds) << "case " << i;
    if (options.objective == Objective::throughput) {
      ASSERT_DOUBLE_EQ(found.slowest_seconds, wanted.slowest) << "case " << i;
    }
  }
}

TEST(Assign, SearchedOrdersAreWithinTwoPercentOfExactOnes) {
  RandomChains random(11);
  int n_compared = 0;
  for (int i = 0; i < 80; ++i) {
    const Chain chain = random.next(24, 8);
    AssignmentOptions options;
    options.objective = random.integer(0, 1) == 0 ? Objective::latency : Objective::throughput;
    options.search_order = true;
    const Assignment exact = assign(chain, options);
    options.max_exact_order = 0;
    const Assignment searched = assign(chain, options);
    ASSERT_EQ(searched.feasible, exact.feasible) << "case " << i;
    if (!exact.feasible) continue;
    ++n_compared;
    const double wanted = options.objective == Objective::latency ? exact.seconds : exact.slowest_seconds;
    const double found = options.objective == Objective::latency ? searched.seconds : searched.slowest_seconds;
    EXPECT_LE(found, wanted * 1.02) << "case " << i << ", " << chain.n_device << " devices, " << chain.n_layer << " layers";
  }
  EXPECT_GT(n_compared, 50);
}

}  // namespace
}  // namespace pshard
