// CpuProbe: copies and products that run into each other.
#include <algorithm>
#include <cstring>
#include <functional>

#include "probe/copy_lane.hpp"
#include "probe/cpu_probe.hpp"

namespace pshard {
namespace {

constexpr int64_t kCopySampleBytes = int64_t{64} << 20;  // milliseconds, far above what it takes to start

// One product after the other by several threads, until told to stop; all threads stop after the same one.
class Repeated {
 public:
  Repeated(Matmul& matmul, std::function<void()> next, int n_threads) : matmul_(matmul), next_(std::move(next)), barrier_(n_threads) {}

  void run(int thread, const std::atomic<bool>& stop) {
    while (true) {
      matmul_.run(thread);
      barrier_.wait();
      if (thread == 0) {
        is_last_ = stop.load(std::memory_order_acquire);
        if (!is_last_) next_();
      }
      barrier_.wait();
      if (is_last_) return;
    }
  }

 private:
  Matmul& matmul_;
  std::function<void()> next_;
  Barrier barrier_;
  bool is_last_ = false;
};

}  // namespace

Contention CpuProbe::contention(const ProductShape& shape, int64_t chunk_bytes, const Policy& policy, int64_t room_bytes) {
  CopyLane lane(chunk_bytes, max_bytes_ / 2, std::memcpy, room_bytes);
  return contention(shape, lane, policy);
}

Contention CpuProbe::contention(const ProductShape& shape, CopyWork& lane, const Policy& policy) {
  const int n_multiply = size() - 1;
  if (n_multiply < 1) throw ProbeError("copies and products run into each other on two CPUs or more, the probe has one");
  const Timer& timer = steady_timer();
  Matmul matmul(kernels_, shape.type, shape.layout, shape.n_rows, shape.n_columns, shape.batch, n_multiply);
  const Copies copies = lay_out(matmul, shape, max_bytes_ / 2);
  const int64_t n_chunks = std::max<int64_t>(1, kCopySampleBytes / lane.chunk_bytes());
  const auto next_product = [&] { matmul.start(next_copies(copies, shape.n_used)); };
  const auto copy_some = [&] {
    for (int64_t i = 0; i < n_chunks; ++i) lane.copy_next();
  };
  const auto fault_of_product = [&] {
    const std::string fault = matmul.fault(plain_.data());
    matmul.spoil_output();
    return fault;
  };
  const auto result_of = [&](double n_bytes, double n_flop, int n_threads, bool is_cold, const Measurement& time) {
    return ProbeResult{time, n_bytes, n_flop, n_threads, is_cold, is_cold ? "" : "max_bytes is too small to keep this out of the caches"};
  };
  const auto copied = static_cast<double>(n_chunks * lane.chunk_bytes());
  const auto copy_result = [&](const Measurement& time) { return result_of(copied, 0.0, 1, lane.is_cold(), time); };
  const auto product_result = [&](const Measurement& time) {
    const auto n_used = static_cast<double>(shape.n_used);
    return result_of(static_cast<double>(matmul.weight_bytes()) * n_used, matmul.n_flop() * n_used, n_multiply, copies.is_cold, time);
  };

  Contention result;
  result.copy_alone = copy_result(measure(
      [&] {
        lane.start(n_chunks);
        return pool_.run([&](int) { copy_some(); }, timer, 1);
      },
      [&] { return lane.fault(); }, policy, timer));

  result.product_alone = product_result(measure(
      [&] {
        next_product();
        return pool_.run(
            [&](int worker) {
              if (worker > 0) matmul.run(worker - 1);
            },
            timer);
      },
      fault_of_product, policy, timer));

  // The side that is measured ends the sample; the other works before, during and after.
  result.copy_under_product = copy_result(measure(
      [&] {
        lane.start(n_chunks);
        next_product();
        Repeated products(matmul, next_product, n_multiply);
        std::atomic<bool> stop{false};
        double seconds = 0.0;
        pool_.run(
            [&](int worker) {
              if (worker > 0) return products.run(worker - 1, stop);
              const double start = timer.now();
              copy_some();
              seconds = timer.now() - start;
              stop.store(true, std::memory_order_release);
            },
            timer);
        return seconds;
      },
      [&] { return lane.fault(); }, policy, timer));

  result.product_under_copy = product_result(measure(
      [&] {
        lane.start(0);
        next_product();
        std::atomic<int> multiplying{n_multiply};
        std::atomic<bool> is_copying{false};
        double start = 0.0;
        double end = 0.0;
        pool_.run(
            [&](int worker) {
              if (worker == 0) {
                do {
                  lane.copy_next();
                  is_copying.store(true, std::memory_order_release);
                } while (multiplying.load(std::memory_order_acquire) > 0);
                return;
              }
              while (!is_copying.load(std::memory_order_acquire)) std::this_thread::yield();
              if (worker == 1) start = timer.now();
              matmul.run(worker - 1);
              if (multiplying.fetch_sub(1, std::memory_order_acq_rel) == 1) end = timer.now();
            },
            timer);
        return end - start;
      },
      fault_of_product, policy, timer));
  return result;
}

}  // namespace pshard
