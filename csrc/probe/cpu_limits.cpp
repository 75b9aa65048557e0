// CpuProbe: what bounds every operation, whatever it reads: starting it, and the units that multiply.
#include <cmath>
#include <functional>

#include "probe/cpu_probe.hpp"

namespace pshard {
namespace {

constexpr int kOpsPerSample = 10'000;
constexpr int64_t kSpins = 100'000;  // some hundred microseconds

}  // namespace

OpCost CpuProbe::op_cost(int n_threads, const Policy& policy) {
  require_threads(n_threads);
  const Timer& timer = steady_timer();
  Barrier barrier(n_threads);
  std::vector<int64_t> done(static_cast<std::size_t>(n_threads) * 8);  // a cache line for each thread
  const std::function<void(int)> operation = [&](int thread) { ++done[static_cast<std::size_t>(thread) * 8]; };
  int64_t expected = 0;
  const auto fault = [&] {
    for (int thread = 0; thread < n_threads; ++thread) {
      if (done[static_cast<std::size_t>(thread) * 8] != expected) return std::string("an operation was left out");
    }
    return std::string();
  };
  OpCost cost;
  cost.op.time = measure(
      [&] {
        expected += kOpsPerSample;
        const double seconds = pool_.run(
            [&](int thread) {
              for (int op = 0; op < kOpsPerSample; ++op) {
                operation(thread);
                barrier.wait();
              }
            },
            timer, n_threads);
        return seconds;
      },
      fault, policy, timer);
  cost.op.time.median_seconds /= kOpsPerSample;
  cost.op.time.minimum_seconds /= kOpsPerSample;
  cost.wake.time = measure(
      [&] {
        ++expected;
        const double start = timer.now();
        pool_.run(operation, timer, n_threads);
        return timer.now() - start;
      },
      fault, policy, timer);
  cost.op.n_threads = cost.wake.n_threads = n_threads;
  return cost;
}

Peak CpuProbe::peak(int n_threads, const Policy& policy) {
  require_threads(n_threads);
  std::vector<double> sums(static_cast<std::size_t>(n_threads));
  const auto measure_sums = [&](const std::function<double()>& spin, double sum, double flop_per_spin) {
    ProbeResult result;
    result.time =
        measure([&] { return pool_.run([&](int thread) { sums[static_cast<std::size_t>(thread)] = spin(); }, steady_timer(), n_threads); },
                [&] {
                  for (const double got : sums) {
                    if (!(std::abs(got - sum) <= 1e-6 * sum))
                      return "the sum is " + std::to_string(got) + ", should be " + std::to_string(sum);
                  }
                  return std::string();
                },
                policy, steady_timer());
    result.n_flop = flop_per_spin * static_cast<double>(kSpins) * n_threads;
    result.n_threads = n_threads;
    return result;
  };
  const double lanes = kernels_.lanes * kPeakChains;
  Peak peak;
  peak.bytes = measure_sums([&] { return static_cast<double>(kernels_.spin_bytes(kSpins)); }, 4.0 * lanes * static_cast<double>(kSpins),
                            8.0 * lanes);
  peak.floats = measure_sums([&] { return kernels_.spin_floats(kSpins); }, 2.0 * lanes, 2.0 * lanes);
  return peak;
}

}  // namespace pshard
