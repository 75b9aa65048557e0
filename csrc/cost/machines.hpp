// What a pass is priced with: one machine where its GPUs are alike, else one for each GPU. The first is that of the host, too.
#pragma once

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>

#include "machine/machine.hpp"
#include "model/schedule.hpp"

namespace pshard {

// A view of machines that must outlive it.
class Machines {
 public:
  Machines(const Machine& alike) : by_gpu_(&alike, 1) {}
  // Throws std::invalid_argument where there is none, or one of several has no GPU.
  explicit Machines(std::span<const Machine> by_gpu) : by_gpu_(by_gpu) {
    const bool all_have = std::all_of(by_gpu.begin(), by_gpu.end(), [](const Machine& machine) { return machine.has_gpu; });
    if (by_gpu.empty() || (by_gpu.size() > 1 && !all_have)) throw std::invalid_argument("each GPU is priced with a machine that has one");
  }

  [[nodiscard]] size_t size() const { return by_gpu_.size(); }
  [[nodiscard]] const Machine& operator[](size_t i) const { return by_gpu_[i]; }
  [[nodiscard]] const Machine& host() const { return by_gpu_.front(); }
  // Requires a GPU that `check_covers` has seen.
  [[nodiscard]] size_t index_of(Device device) const { return size() > 1 && is_gpu(device) ? index(device) - index(Device::gpu) : 0; }
  [[nodiscard]] const Machine& of(Device device) const { return by_gpu_[index_of(device)]; }
  [[nodiscard]] const Machine& of(Where where) const { return of(device_of(where)); }
  [[nodiscard]] auto begin() const { return by_gpu_.begin(); }
  [[nodiscard]] auto end() const { return by_gpu_.end(); }

  // Throws std::invalid_argument where several machines are fewer than the GPUs.
  void check_covers(int n_gpu) const {
    if (size() == 1 || static_cast<int>(size()) >= n_gpu) return;
    throw std::invalid_argument(std::to_string(n_gpu) + " GPUs, and machines for " + std::to_string(size()) + "; give one for each");
  }

 private:
  std::span<const Machine> by_gpu_;
};

}  // namespace pshard
