#include "probe/devices.hpp"

namespace pshard {
namespace {

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace

std::string driver_reason(int driver, int needed) {
  if (driver == 0) return "no driver";
  return "driver too old (" + version_text(driver) + ", needs " + version_text(needed) + ")";
}

}  // namespace pshard
