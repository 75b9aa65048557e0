#include "probe/devices.hpp"

#include <gtest/gtest.h>

TEST(Devices, AreFoundOrTheirAbsenceIsExplained) {
  const pshard::GpuQuery query = pshard::query_gpus();
  EXPECT_EQ(query.devices.empty(), !query.reason.empty());
  if (!pshard::built_with_cuda()) {
    EXPECT_EQ(query.reason, "built without CUDA");
  }
}

TEST(Devices, TellAMissingDriverFromAnOldOne) {
  EXPECT_EQ(pshard::driver_reason(0, 13000), "no driver");
  EXPECT_EQ(pshard::driver_reason(12040, 13000), "driver too old (12.4, needs 13.0)");
  EXPECT_EQ(pshard::driver_reason(9010, 12060), "driver too old (9.1, needs 12.6)");
}
