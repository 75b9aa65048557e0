// What a GPU and its link reach, operation by operation. Work is queued behind a gate and timed by the device's events, so that queueing is
// not timed; a sample repeats it until it is long enough for their clock. Every result is verified, and ProbeError thrown when it is wrong.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "probe/copy_ring.hpp"
#include "probe/copy_work.hpp"
#include "probe/cpu_probe.hpp"
#include "probe/gpu.hpp"
#include "probe/measure.hpp"

namespace pshard {

// Seconds of one: of kernels in a row; of kernels in a row on two lanes, each waiting for the one before; of synchronising an idle lane.
struct GpuStart {
  ProbeResult launch;
  ProbeResult hop;
  ProbeResult synchronise;
};

struct Handoff {
  ProbeResult to_gpu;  // from the call that queues a kernel until that runs and the host sees it
  ProbeResult to_cpu;  // from then until the host knows that it has ended
};

// Two sides, each alone and beside the other.
struct Sides {
  ProbeResult first_alone;
  ProbeResult second_alone;
  ProbeResult first_beside;
  ProbeResult second_beside;
};

struct LockedMemory {
  int64_t n_bytes = 0;
  bool was_refused = false;  // the driver gave no more; otherwise no more was asked for
};

class GpuProbe {
 public:
  // Bounds of the memory that a probe takes of the device, and of the host.
  GpuProbe(std::unique_ptr<Gpu> gpu, int64_t max_device_bytes, int64_t max_host_bytes);

  [[nodiscard]] Gpu& gpu() const { return *gpu_; }

  ProbeResult read(const Policy& policy);            // of the device's memory
  ProbeResult copy_on_device(const Policy& policy);  // counts what is copied; memory reads and writes each of them
  GpuStart start(const Policy& policy);
  Handoff handoff(const Policy& policy);

  // Each repetition takes other weights or another cache, so that none lies in the device's cache.
  ProbeResult product(const GpuProduct& shape, const Policy& policy);
  ProbeResult experts(const GpuExperts& shape, const Policy& policy);
  ProbeResult attention(const AttentionShape& shape, const Policy& policy);
  // Of halves, by the vendor's library: what product() is held against.
  ProbeResult library_product(const GpuProduct& shape, const Policy& policy);

  // Pageable memory is copied by calls that wait, so it is timed by the clock of the host.
  ProbeResult copy(const CopyShape& shape, const Policy& policy);
  // Copies in a row by the clock of the host, from the first call to the end of the last: what anybody's loop gets, to hold copy() against.
  // The fastest of a few rounds, for one copy. Nothing is verified.
  double plain_copy_seconds(Direction direction, int64_t chunk_bytes);
  Sides copies_both_ways(int64_t chunk_bytes, const Policy& policy);                                // up, down
  Sides copies_beside_product(const GpuProduct& shape, int64_t chunk_bytes, const Policy& policy);  // up, product
  // Copies up from page-locked memory, for a probe that works beside them; the calling thread waits for each few chunks. Ends before this.
  std::unique_ptr<CopyWork> copies_up(int64_t chunk_bytes);

  // Page-locks `step_bytes` at a time until the driver refuses, `limit_bytes` are reached or `budget_seconds` are over; then gives all
  // back.
  LockedMemory lockable(int64_t step_bytes, int64_t limit_bytes, double budget_seconds);

 private:
  // What samples repeat on one lane. Repetitions are numbered on and on; `next` is the one that comes next.
  struct Repeated {
    GpuLane lane = GpuLane::compute;
    int most = 1;  // in one sample
    std::function<void(int64_t index)> queue;
    std::function<void(int64_t first, int64_t n)> spoil = [](int64_t, int64_t) {};
    std::function<std::string(int64_t first, int64_t n)> fault = [](int64_t, int64_t) { return std::string(); };
    int64_t next = 0;
    int64_t n_last = 0;    // of the last sample
    double seconds = 0.0;  // that one takes, about

    void queue_next(int64_t n) {
      for (int64_t i = 0; i < n; ++i) queue(next++);
      n_last = n;
    }
  };
  class Weights;

  // Seconds of `n` repetitions; meanwhile, and longer, `n_beside` of another.
  double timed(Repeated& work, int64_t n, Repeated* beside = nullptr, int64_t n_beside = 0);
  void calibrate(Repeated& work);
  ProbeResult measured(Repeated& work, double n_bytes, double n_flop, const Policy& policy, Repeated* beside = nullptr);
  Repeated copies(CopyRing& ring, const CopyShape& shape);
  Repeated products(const GpuProduct& shape, const std::shared_ptr<Weights>& weights);
  CopyRing& ring(HostMemory memory, int64_t chunk_bytes);
  [[nodiscard]] int64_t ring_bytes(int64_t chunk_bytes) const;
  [[nodiscard]] Timer timer() const;

  std::unique_ptr<Gpu> gpu_;
  int64_t max_device_bytes_;
  int64_t max_host_bytes_;
  std::unique_ptr<CopyRing> ring_;  // kept between probes: locking pages takes longer than copying them
};

}  // namespace pshard
