#include "fleet/chain_stages.hpp"

#include <gtest/gtest.h>

namespace pshard {
namespace {

// Layers of 10, 20, 30 and 40 bytes, of 1 to 4 seconds, on one device of 70 bytes and one of 45.
Chain four_layers() {
  Chain chain;
  chain.n_layer = 4;
  chain.n_device = 2;
  chain.layer_seconds = {1, 1, 2, 2, 3, 3, 4, 4};
  chain.layer_bytes = {10, 10, 20, 20, 30, 30, 40, 40};
  chain.capacity_bytes = {70, 45};
  return chain;
}

TEST(ChainStages, SumsAnyRun) {
  Chain chain = four_layers();
  chain.entry_seconds = {0.5, 0.0};
  chain.exit_seconds = {0.0, 0.25};
  const ChainStages stages(chain);
  EXPECT_DOUBLE_EQ(stages.seconds(0, 0, 2), 3.5);
  EXPECT_DOUBLE_EQ(stages.seconds(0, 1, 3), 5.0);
  EXPECT_DOUBLE_EQ(stages.seconds(1, 2, 4), 7.25);
}

TEST(ChainStages, ReachesAsFarAsTheMemoryDoes) {
  const Chain chain = four_layers();
  const ChainStages stages(chain);
  EXPECT_EQ(stages.reach(0, 0), 3);  // 60 of 70 bytes
  EXPECT_EQ(stages.reach(1, 0), 2);
  EXPECT_TRUE(stages.fits_to_end(0, 2));  // 70 bytes
  EXPECT_FALSE(stages.fits_to_end(1, 2));
  EXPECT_EQ(stages.missing_bytes(1, 2, 4), 25);
}

TEST(ChainStages, CountsFixedEntryAndExitBytesWhereTheyBelong) {
  Chain chain = four_layers();
  chain.fixed_bytes = {5, 0};
  chain.entry_bytes = {10, 0};
  chain.exit_bytes = {0, 1};
  const ChainStages stages(chain);
  EXPECT_EQ(stages.reach(0, 0), 2);  // 5 + 10 + 60 is too much
  EXPECT_EQ(stages.missing_bytes(0, 0, 3), 5);
  EXPECT_EQ(stages.missing_bytes(0, 1, 3), 0);
  EXPECT_EQ(stages.missing_bytes(1, 3, 4), 0);
  chain.exit_bytes = {0, 6};
  EXPECT_EQ(ChainStages(chain).missing_bytes(1, 3, 4), 1);
}

}  // namespace
}  // namespace pshard
