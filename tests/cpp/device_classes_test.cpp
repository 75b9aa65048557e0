#include "fleet/device_classes.hpp"

#include <gtest/gtest.h>

namespace pshard {
namespace {

// Equal devices, three in each of two hosts.
Chain two_hosts() {
  Chain chain;
  chain.n_layer = 8;
  chain.n_device = 6;
  chain.layer_seconds.assign(48, 1.0);
  chain.layer_bytes.assign(48, 1);
  chain.capacity_bytes.assign(6, 4);
  for (int from = 0; from < 6; ++from) {
    for (int to = 0; to < 6; ++to) chain.transfer_seconds.push_back(from / 3 == to / 3 ? 0.25 : 0.5);
  }
  return chain;
}

TEST(DeviceClasses, AreToldApartByEveryTable) {
  const DeviceClasses classes(two_hosts());
  EXPECT_EQ(classes.members(), (std::vector<std::vector<int32_t>>{{0, 1, 2}, {3, 4, 5}}));
  EXPECT_TRUE(classes.alike(3, 5));
  EXPECT_FALSE(classes.alike(2, 3));
  EXPECT_EQ(classes.n_states(1000), 2 * 4 * 4);
  EXPECT_EQ(classes.n_states(10), 11);

  Chain chain = two_hosts();
  chain.capacity_bytes[1] = 5;
  EXPECT_EQ(DeviceClasses(chain).n_class(), 3);
  chain = two_hosts();
  chain.entry_seconds = {0.0, 0.0, 0.0, 0.0, 0.0, 1.0};
  EXPECT_EQ(DeviceClasses(chain).n_class(), 3);
  chain = two_hosts();
  chain.transfer_seconds[1] = 0.3;  // from the first to the second, and not back
  EXPECT_EQ(DeviceClasses(chain).n_class(), 4);
  chain = two_hosts();
  chain.run_bytes.assign(2 * 81, 0);
  chain.run_table = {0, 0, 1, 0, 0, 0};
  EXPECT_EQ(DeviceClasses(chain).n_class(), 3);
}

TEST(DeviceClasses, HaveNoMoreMembersThanThereAreLayers) {
  Chain chain = two_hosts();
  chain.n_layer = 2;
  chain.layer_seconds.resize(12);
  chain.layer_bytes.resize(12);
  const DeviceClasses classes(chain);
  EXPECT_EQ(classes.members(), (std::vector<std::vector<int32_t>>{{0, 1}, {3, 4}}));
  EXPECT_TRUE(classes.alike(0, 2));
}

}  // namespace
}  // namespace pshard
