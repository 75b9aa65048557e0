// What no order of the devices can be better than: the best of all orders if every transfer were the shortest there is. Devices that only
// their links tell apart are then of one kind, so that clusters of equal machines have few orders left, and a search can stop where it has
// reached the bound.
#pragma once

#include <cstdint>

#include "fleet/device_classes.hpp"
#include "fleet/stage_program.hpp"

namespace pshard {

class OrderBound {
 public:
  explicit OrderBound(const Chain& chain);

  // Minus infinity where there are too many kinds of devices to tell. `limit_seconds` as in `StageProgram`.
  [[nodiscard]] double value(Measure measure, bool allow_empty, double limit_seconds) const;

 private:
  Chain relaxed_;
  ChainStages stages_;
  DeviceClasses classes_;
};

}  // namespace pshard
