// Seconds and bytes of any stage of a chain in constant time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fleet/assignment.hpp"

namespace pshard {

class ChainStages {
 public:
  // Throws like `assign`. `chain` must outlive the object.
  explicit ChainStages(const Chain& chain);

  [[nodiscard]] int64_t n_layer() const { return chain_.n_layer; }
  [[nodiscard]] int32_t n_device() const { return chain_.n_device; }
  [[nodiscard]] bool has_transfers() const { return !chain_.transfer_seconds.empty(); }
  [[nodiscard]] double transfer_seconds(int32_t from, int32_t to) const;
  // The slowest stage takes no less, wherever the layers lie.
  [[nodiscard]] double least_slowest_seconds() const;

  // Of layers [begin, end) on `device`; begin < end.
  [[nodiscard]] double seconds(int32_t device, int64_t begin, int64_t end) const;
  [[nodiscard]] int64_t missing_bytes(int32_t device, int64_t begin, int64_t end) const;
  // The last end that fits, the chain's own end apart: that needs exit bytes, and `fits_to_end` knows.
  [[nodiscard]] int64_t reach(int32_t device, int64_t begin) const { return reach_[at(device, begin)]; }
  [[nodiscard]] bool fits_to_end(int32_t device, int64_t begin) const { return missing_bytes(device, begin, n_layer()) == 0; }

 private:
  [[nodiscard]] size_t at(int64_t row, int64_t layer) const {
    return static_cast<size_t>(row) * static_cast<size_t>(chain_.n_layer + 1) + static_cast<size_t>(layer);
  }
  [[nodiscard]] int64_t run_bytes(size_t memory, int64_t begin, int64_t end) const;
  [[nodiscard]] int64_t memory_missing_bytes(size_t memory, int64_t begin, int64_t end) const;

  const Chain& chain_;
  std::vector<double> seconds_before_;         // [device][layer] of the layers before it
  std::vector<int64_t> bytes_before_;          // [memory][layer]
  std::vector<std::vector<size_t>> memories_;  // [device]
  std::vector<int64_t> reach_;                 // [device][begin]
};

}  // namespace pshard
