#include "probe/copy_lane.hpp"

#include <gtest/gtest.h>

#include <set>

#include "probe/measure.hpp"

namespace pshard {
namespace {

constexpr int64_t kChunk = 10'000;
constexpr int64_t kBytes = 6 * kChunk;  // three chunks in each array

TEST(CopyLane, CopiesRoundAndRound) {
  CopyLane lane(kChunk, kBytes);
  EXPECT_FALSE(lane.is_cold());
  for (int round = 0; round < 5; ++round) {
    lane.start(2);
    lane.copy_next();
    lane.copy_next();
    EXPECT_EQ(lane.fault(), "");
  }
}

TEST(CopyLane, CopiesIntoARoomInTurn) {
  static std::set<void*> written;
  written.clear();
  CopyLane lane(
      kChunk, kBytes,
      [](void* to, const void* from, std::size_t n) {
        written.insert(to);
        return std::memcpy(to, from, n);
      },
      2 * kChunk);
  for (int round = 0; round < 3; ++round) {
    lane.start(5);
    for (int i = 0; i < 5; ++i) lane.copy_next();
    EXPECT_EQ(lane.fault(), "");
  }
  EXPECT_EQ(written.size(), 2U);
}

TEST(CopyLane, ACopyThatMovesNothingIsFound) {
  CopyLane lane(kChunk, kBytes, [](void* to, const void*, std::size_t) { return to; });
  lane.start(1);
  lane.copy_next();
  EXPECT_EQ(lane.fault(), "chunk 0 of 1 was not copied");
}

TEST(CopyLane, ACopyThatStopsMovingIsFoundWhereItHadCopiedBefore) {
  static bool moves;
  moves = true;
  CopyLane lane(kChunk, kBytes, [](void* to, const void* from, std::size_t n) { return moves ? std::memcpy(to, from, n) : to; });
  for (int i = 0; i < 3; ++i) {
    lane.start(1);
    lane.copy_next();
    EXPECT_EQ(lane.fault(), "");
  }
  moves = false;
  lane.start(1);
  lane.copy_next();
  EXPECT_EQ(lane.fault(), "chunk 0 of 1 was not copied");
}

TEST(CopyLane, ACopyThatFallsShortIsFound) {
  CopyLane lane(kChunk, kBytes, [](void* to, const void* from, std::size_t n) { return std::memcpy(to, from, n - 1); });
  lane.start(1);
  lane.copy_next();
  EXPECT_NE(lane.fault(), "");
}

TEST(CopyLane, NothingCopiedIsAFault) {
  CopyLane lane(kChunk, kBytes);
  lane.start(1);
  EXPECT_EQ(lane.fault(), "nothing was copied");
}

TEST(CopyLane, RefusesChunksThatDoNotFit) {
  EXPECT_THROW(CopyLane(kChunk, 2 * kChunk - 1), ProbeError);
  EXPECT_THROW(CopyLane(0, kBytes), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
