#include "probe/threads.hpp"

#include <gtest/gtest.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <set>

#include "probe_cases.hpp"

namespace pshard {
namespace {

TEST(ThreadPool, EveryWorkerRunsOnce) {
  ThreadPool pool(test_cpus(3));
  std::vector<int> runs(3);
  for (int i = 0; i < 5; ++i) pool.run([&](int thread) { ++runs[static_cast<std::size_t>(thread)]; }, steady_timer());
  EXPECT_EQ(runs, (std::vector<int>{5, 5, 5}));
  pool.run([&](int thread) { ++runs[static_cast<std::size_t>(thread)]; }, steady_timer(), 2);
  EXPECT_EQ(runs, (std::vector<int>{6, 6, 5}));
}

TEST(ThreadPool, TheClockStartsBeforeAnyWorkAndEndsAfterAll) {
  ThreadPool pool(test_cpus(3));
  for (int i = 0; i < 50; ++i) {
    std::atomic<int> finished{0};
    std::vector<int> finished_at_reading;
    const Timer timer{[&] {
                        finished_at_reading.push_back(finished.load());
                        return static_cast<double>(finished_at_reading.size());
                      },
                      1.0};
    EXPECT_DOUBLE_EQ(pool.run([&](int) { finished.fetch_add(1); }, timer), 1.0);
    EXPECT_EQ(finished_at_reading, (std::vector<int>{0, 3}));
  }
}

TEST(ThreadPool, AFaultOfATaskReachesTheCallerAndLeavesThePoolUsable) {
  ThreadPool pool(test_cpus(2));
  const auto fail = [](int thread) {
    if (thread == 1) throw std::runtime_error("worker 1 says no");
  };
  EXPECT_THROW(pool.run(fail, steady_timer()), ProbeError);
  std::atomic<int> n{0};
  pool.run([&](int) { ++n; }, steady_timer());
  EXPECT_EQ(n, 2);
}

TEST(ThreadPool, RefusesWhatItDoesNotHave) {
  EXPECT_THROW(ThreadPool({}), std::invalid_argument);
  ThreadPool pool(test_cpus(2));
  EXPECT_THROW(pool.run([](int) {}, steady_timer(), 3), std::invalid_argument);
  EXPECT_THROW(pool.run([](int) {}, steady_timer(), 0), std::invalid_argument);
}

#if defined(__linux__)
TEST(ThreadPool, WorkersStayOnTheirCpus) {
  const std::vector<int> cpus = test_cpus(2);
  ThreadPool pool(cpus);
  std::vector<int> seen(2);
  pool.run([&](int thread) { seen[static_cast<std::size_t>(thread)] = sched_getcpu(); }, steady_timer());
  EXPECT_EQ(seen, cpus);
  EXPECT_THROW(ThreadPool({cpus[0], 1'000'000}), ProbeError);
  EXPECT_THROW(ThreadPool({-1}), ProbeError);
}
#endif

TEST(Barrier, NoThreadPassesBeforeAllHaveCome) {
  constexpr int kThreads = 3;
  ThreadPool pool(test_cpus(kThreads));
  Barrier barrier(kThreads);
  std::atomic<int> come{0};
  std::atomic<int> early{0};
  pool.run(
      [&](int) {
        for (int round = 1; round <= 200; ++round) {
          ++come;
          barrier.wait();
          if (come.load() < round * kThreads) ++early;
          barrier.wait();
        }
      },
      steady_timer());
  EXPECT_EQ(early, 0);
  EXPECT_EQ(come, 200 * kThreads);
}

}  // namespace
}  // namespace pshard
