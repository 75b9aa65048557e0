#include "stream/work_queue.hpp"

#include <gtest/gtest.h>

#include "probe_cases.hpp"

namespace pshard {
namespace {

TEST(WorkQueue, WorksInOrderWithAllThreads) {
  Failure failure;
  std::vector<int> order;
  std::atomic<int> shared{0};
  {
    WorkQueue queue(test_cpus(3), failure);
    for (int i = 0; i < 200; ++i) {
      queue.push({.alone = [&order, i] { order.push_back(i); }, .shared = [&shared](int) { ++shared; }});
    }
  }
  ASSERT_EQ(order.size(), 200U);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  EXPECT_EQ(shared, 600);
  EXPECT_FALSE(failure.is_set());
}

TEST(WorkQueue, OneWaitsForAnotherWithoutLosingASignal) {
  Failure failure;
  constexpr int kTurns = 300;
  std::vector<Signal> signals(2 * kTurns);
  int turns = 0;  // both queues write it: what orders them is the signals alone
  {
    WorkQueue a(test_cpus(2), failure);
    WorkQueue b(test_cpus(1), failure);
    for (int i = 0; i < 2 * kTurns; ++i) {
      WorkQueue& queue = i % 2 == 0 ? a : b;
      queue.push({.alone = [&, i] {
        if (i > 0) signals[static_cast<size_t>(i) - 1].wait();
        if (turns == i) ++turns;
        signals[static_cast<size_t>(i)].set(i);
      }});
    }
  }
  EXPECT_EQ(turns, 2 * kTurns);
  EXPECT_EQ(signals.back().seconds(), 2 * kTurns - 1);
}

TEST(WorkQueue, PassesItsWorkByAfterAFailureButNotWhatOthersWaitFor) {
  Failure failure;
  std::atomic<int> done{0};
  std::atomic<int> always{0};
  {
    WorkQueue queue(test_cpus(2), failure);
    queue.push({.alone = [] { throw std::runtime_error("first"); }, .shared = [&](int) { ++done; }});
    queue.push({.shared = [&](int) { ++done; }});
    queue.push({.alone = [&] { ++always; }, .always = true});
  }
  EXPECT_EQ(done, 0);
  EXPECT_EQ(always, 1);
  failure.set("second");
  EXPECT_EQ(failure.take(), "first");
  EXPECT_FALSE(failure.is_set());
  EXPECT_EQ(failure.take(), "");
}

TEST(WorkQueue, NeedsAnAvailableCpu) {
  Failure failure;
  EXPECT_THROW(WorkQueue({}, failure), std::invalid_argument);
  EXPECT_THROW(WorkQueue({test_cpus(1)[0], 1'000'000}, failure), ProbeError);
}

}  // namespace
}  // namespace pshard
