// Devices that may change places without anything changing: of an order only the number of each kind matters, and of these kinds the
// devices are taken by index. So a cluster of equal machines has few orders, however many devices it has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fleet/assignment.hpp"

namespace pshard {

class DeviceClasses {
 public:
  // Every table of two devices in one class is the same, transfers from, to and between them included. O(devices^2) for each class.
  explicit DeviceClasses(const Chain& chain);

  [[nodiscard]] int32_t n_class() const { return static_cast<int32_t>(members_.size()); }
  [[nodiscard]] const std::vector<std::vector<int32_t>>& members() const { return members_; }
  [[nodiscard]] bool alike(int32_t a, int32_t b) const { return class_of_[static_cast<size_t>(a)] == class_of_[static_cast<size_t>(b)]; }

  // Sets of devices that differ, times the classes that the last device may be of; at most `limit` + 1, as it may be beyond any integer.
  [[nodiscard]] int64_t n_states(int64_t limit) const;

 private:
  std::vector<std::vector<int32_t>> members_;  // by class; both in order of the index, and never more than there are layers
  std::vector<int32_t> class_of_;
};

}  // namespace pshard
