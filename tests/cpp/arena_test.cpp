#include "memory/arena.hpp"

#include <gtest/gtest.h>

namespace pshard {
namespace {

TEST(Arena, PadsAndGrowsAtTheEnd) {
  Arena arena(128);
  EXPECT_EQ(arena.allocate(1), 0);
  EXPECT_EQ(arena.allocate(129), 128);
  EXPECT_EQ(arena.extent(), 384);
}

TEST(Arena, TakesTheSmallestHoleThatFitsAndOfEqualOnesTheLast) {
  Arena arena(1);
  const int64_t a = arena.allocate(20);
  static_cast<void>(arena.allocate(1));
  const int64_t b = arena.allocate(10);
  static_cast<void>(arena.allocate(1));
  const int64_t c = arena.allocate(10);
  static_cast<void>(arena.allocate(1));
  arena.free(a, 20);
  arena.free(b, 10);
  arena.free(c, 10);
  EXPECT_EQ(arena.allocate(10), c);
  EXPECT_EQ(arena.allocate(5), b);
  EXPECT_EQ(arena.allocate(11), a);
  EXPECT_EQ(arena.extent(), 43);
}

TEST(Arena, MergesNeighboursAndGivesBackTheEnd) {
  Arena arena(1);
  const int64_t a = arena.allocate(10);
  const int64_t b = arena.allocate(10);
  const int64_t c = arena.allocate(10);
  const int64_t d = arena.allocate(10);
  arena.free(a, 10);
  arena.free(c, 10);
  arena.free(b, 10);
  EXPECT_EQ(arena.allocate(30), a);
  arena.free(a, 30);
  arena.free(d, 10);
  EXPECT_EQ(arena.extent(), 0);
  EXPECT_EQ(arena, Arena(1));
}

TEST(Arena, ShrinkFreesWholeUnitsOnly) {
  Arena arena(128);
  const int64_t a = arena.allocate(512);
  arena.shrink(a, 512, 500);
  EXPECT_EQ(arena.extent(), 512);
  arena.shrink(a, 512, 100);
  EXPECT_EQ(arena.extent(), 128);
}

}  // namespace
}  // namespace pshard
