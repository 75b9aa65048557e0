#include "stream/locked_ranges.hpp"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace pshard {
namespace {

const uint8_t* at(int64_t address) { return reinterpret_cast<const uint8_t*>(address); }  // NOLINT: pages are numbers here

struct Driver {
  LockedRanges ranges{100};
  std::vector<std::pair<int64_t, int64_t>> taken;
  int64_t left = 1 << 20;

  bool lock(int64_t begin, int64_t n_bytes) {
    return ranges.add(at(begin), n_bytes, [&](void* page, int64_t n) {
      if (n > left) return false;
      left -= n;
      taken.emplace_back(reinterpret_cast<int64_t>(page), n);
      return true;
    });
  }
};

TEST(LockedRanges, TakeWholePagesAndEachOnce) {
  Driver driver;
  EXPECT_TRUE(driver.lock(1050, 100));  // of the pages from 1000 to 1200
  EXPECT_TRUE(driver.lock(1150, 200));  // 1100 is there
  EXPECT_TRUE(driver.lock(1010, 300));  // all is
  EXPECT_TRUE(driver.lock(900, 1000));  // on both sides of what is there
  const std::vector<std::pair<int64_t, int64_t>> expected{{1000, 200}, {1200, 200}, {900, 100}, {1400, 500}};
  EXPECT_EQ(driver.taken, expected);
  EXPECT_EQ(driver.ranges.n_bytes(), 1000);
}

TEST(LockedRanges, SayHowFarTheSameGoesOn) {
  Driver driver;
  driver.lock(1000, 200);
  driver.lock(1200, 100);
  driver.lock(2000, 100);
  EXPECT_TRUE(driver.ranges.from(at(1050)).is_locked);
  EXPECT_EQ(driver.ranges.from(at(1050)).n_bytes, 150);  // not into the next: two registrations
  EXPECT_EQ(driver.ranges.from(at(1299)).n_bytes, 1);
  EXPECT_FALSE(driver.ranges.from(at(1300)).is_locked);
  EXPECT_EQ(driver.ranges.from(at(1300)).n_bytes, 700);
  EXPECT_EQ(driver.ranges.from(at(0)).n_bytes, 1000);
  EXPECT_EQ(driver.ranges.from(at(2100)).n_bytes, INT64_MAX);
}

TEST(LockedRanges, KeepWhatCameBeforeARefusal) {
  Driver driver;
  driver.left = 300;
  EXPECT_TRUE(driver.lock(1000, 200));
  EXPECT_FALSE(driver.lock(900, 500));  // 900 is taken, 1200 to 1400 refused
  EXPECT_EQ(driver.ranges.n_bytes(), 300);
  EXPECT_TRUE(driver.ranges.from(at(900)).is_locked);
  EXPECT_FALSE(driver.ranges.from(at(1200)).is_locked);
  std::vector<int64_t> given_back;
  driver.ranges.clear([&](void* begin) { given_back.push_back(reinterpret_cast<int64_t>(begin)); });
  EXPECT_EQ(given_back, (std::vector<int64_t>{900, 1000}));
  EXPECT_EQ(driver.ranges.n_bytes(), 0);
}

}  // namespace
}  // namespace pshard
