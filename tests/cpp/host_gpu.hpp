// A GPU of the host, so that probes run where there is none, and what can be wrong with one. Work is done when it is queued; how long it
// takes is counted, not timed: each lane has a clock of its own, and events say what it shows.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

#include "probe/gpu.hpp"
#include "probe/gpu_reference.hpp"
#include "probe/measure.hpp"
#include "probe/memory.hpp"

namespace pshard {

struct GpuFaults {
  bool copies_move = true;
  int64_t copies_fall_short = 0;  // bytes
  bool products_are_right = true;
  int64_t most_locked_bytes = int64_t{1} << 40;
  double tick_seconds = 1e-7;
  bool gate_holds = true;
  double late_share = 0.0;  // of itself that all work takes longer, every third time that the gate is shut
};

class HostGpu final : public Gpu {
 public:
  static constexpr double kKernelSeconds = 2e-6, kCopySeconds = 4e-6, kBytesPerSecond = 1e10, kFlopPerSecond = 1e10, kWaitSeconds = 1e-6;
  static constexpr double kBesideShare = 0.5;  // of its speed that a lane keeps while another works

  explicit HostGpu(GpuFaults faults = {}) : faults_(faults) {}

  std::string name() const override { return "host"; }
  int64_t cache_bytes() const override { return 4096; }
  int64_t free_bytes() const override { return int64_t{1} << 30; }
  int32_t copy_engines() const override { return 2; }
  double tick_seconds() const override { return faults_.tick_seconds; }

  uint8_t* allocate(int64_t n_bytes) override { return keep(n_bytes); }
  void free(uint8_t* bytes) noexcept override { kept_.erase(bytes); }
  uint8_t* lock(int64_t n_bytes) override {
    if (locked_bytes_ + n_bytes > faults_.most_locked_bytes) return nullptr;
    locked_bytes_ += n_bytes;
    return keep(n_bytes);
  }
  void unlock(uint8_t* bytes) noexcept override {
    locked_bytes_ -= kept_.at(bytes).size();
    kept_.erase(bytes);
  }
  [[nodiscard]] int64_t locked_bytes() const { return locked_bytes_; }
  [[nodiscard]] std::size_t n_allocated() const { return kept_.size(); }

  void copy(GpuLane lane, void* to, const void* from, int64_t n_bytes) override {
    spend(lane, kCopySeconds + static_cast<double>(n_bytes) / kBytesPerSecond);
    const bool is_probed = lane != GpuLane::compute && n_bytes < kSetUpBytes;
    if (is_probed && !faults_.copies_move) return;
    std::memcpy(to, from, static_cast<std::size_t>(n_bytes - (is_probed ? faults_.copies_fall_short : 0)));
  }
  void fill(GpuLane lane, void* to, uint8_t byte, int64_t n_bytes) override {
    spend(lane, kKernelSeconds);
    std::memset(to, byte, static_cast<std::size_t>(n_bytes));
  }
  void do_nothing(GpuLane lane) override { spend(lane, kKernelSeconds); }
  void show(GpuLane /*lane*/, uint32_t* locked, uint32_t value) override {
    pass(kKernelSeconds);
    *static_cast<volatile uint32_t*>(locked) = value;
  }
  void sum(GpuLane lane, const void* words, int64_t n_words, uint64_t* out) override {
    spend(lane, kKernelSeconds + static_cast<double>(8 * n_words) / kBytesPerSecond);
    for (int64_t i = 0; i < n_words; ++i) *out += static_cast<const uint64_t*>(words)[i];
  }
  void multiply(GpuLane lane, const GpuProduct& shape, const void* weights, const float* x, float* y, void* /*scratch*/) override {
    const auto* bytes = static_cast<const uint8_t*>(weights);
    run(lane, y, shape.batch * shape.n_rows, shape.n_columns, [&](int64_t i) { return expected_of_product(shape, bytes, x, i); });
  }
  void multiply_experts(GpuLane lane, const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y,
                        void* /*scratch*/) override {
    const auto* bytes = static_cast<const uint8_t*>(weights);
    run(lane, y, shape.batch * shape.n_used * shape.n_rows, shape.n_columns,
        [&](int64_t i) { return expected_of_experts(shape, bytes, ids, x, i); });
  }
  void attend(GpuLane lane, const AttentionShape& shape, const float* queries, const void* keys, const void* values, float* out,
              void* /*scratch*/) override {
    const auto* k = static_cast<const uint16_t*>(keys);
    const auto* v = static_cast<const uint16_t*>(values);
    run(lane, out, shape.batch * shape.n_heads * shape.head_size, 2 * shape.depth,
        [&](int64_t i) { return expected_of_attention(shape, false, queries, k, v, i); });
  }

  void multiply_by_library(GpuLane /*lane*/, const GpuProduct& /*shape*/, const uint16_t* /*weights*/, const uint16_t* /*x*/,
                           float* /*y*/) override {
    throw GpuError("the host has no such library");
  }

  void record(GpuLane lane, int event) override { times_[at(event)] = clock(lane); }
  void wait(GpuLane lane, int event) override { clock(lane) = std::max(clock(lane), times_[at(event)] + kWaitSeconds); }
  void synchronise(GpuLane /*lane*/) override { pass(kWaitSeconds); }
  double seconds_between(int from, int to) override { return times_[at(to)] - times_[at(from)]; }

  void hold() override {
    ++n_held_;
    clocks_.fill(*std::max_element(clocks_.begin(), clocks_.end()));
    has_worked_.fill(false);
  }
  bool release() override { return faults_.gate_holds; }

 private:
  static constexpr int64_t kSetUpBytes = 1 << 20;  // larger copies set rings up

  // Some work is timed by the host, whose clock goes on by itself.
  static void pass(double seconds) {
    for (const double end = steady_timer().now() + seconds; steady_timer().now() < end;) {
    }
  }
  static std::size_t at(int event) { return static_cast<std::size_t>(event); }
  double& clock(GpuLane lane) { return clocks_[static_cast<std::size_t>(lane)]; }
  void spend(GpuLane lane, double seconds) {
    has_worked_[static_cast<std::size_t>(lane)] = true;
    const bool is_beside = std::count(has_worked_.begin(), has_worked_.end(), true) > 1;
    clock(lane) += seconds / (is_beside ? kBesideShare : 1.0) * (n_held_ % 3 == 0 ? 1.0 + faults_.late_share : 1.0);
  }
  template <typename Output>
  void run(GpuLane lane, float* out, int64_t n, int64_t terms, Output output) {
    spend(lane, kKernelSeconds + static_cast<double>(2 * n * terms) / kFlopPerSecond);
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(output(i).sum) + (faults_.products_are_right ? 0.0F : 1.0F);
  }
  uint8_t* keep(int64_t n_bytes) {
    Buffer bytes(n_bytes);
    uint8_t* data = bytes.data();
    kept_.emplace(data, std::move(bytes));
    return data;
  }

  GpuFaults faults_;
  std::map<uint8_t*, Buffer> kept_;
  int64_t locked_bytes_ = 0;
  int64_t n_held_ = 1;
  std::array<double, kGpuLanes> clocks_{};
  std::array<bool, kGpuLanes> has_worked_{};
  std::array<double, kGpuEvents> times_{};
};

}  // namespace pshard
