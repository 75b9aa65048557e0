#include "machine/machine.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace pshard {
namespace {

RateSeries series() { return {{1.0, 4.0, 64.0}, {2e9, 8e9, 32e9}, Basis::measured, 0.1}; }

TEST(RateSeries, IsExactAtItsPoints) {
  EXPECT_DOUBLE_EQ(series().rate(1.0), 2e9);
  EXPECT_DOUBLE_EQ(series().rate(4.0), 8e9);
  EXPECT_DOUBLE_EQ(series().rate(64.0), 32e9);
}

TEST(RateSeries, InterpolatesInLogSpace) {
  EXPECT_NEAR(series().rate(2.0), 4e9, 1.0);    // geometric middle of 1 and 4: sqrt(2e9 * 8e9)
  EXPECT_NEAR(series().rate(16.0), 16e9, 1.0);  // geometric middle of 4 and 64: sqrt(8e9 * 32e9)
}

TEST(RateSeries, KeepsSecondsBelowAndRateAbove) {
  RateSeries tail = series();
  tail.batch.front() = 2.0;
  EXPECT_DOUBLE_EQ(tail.rate(1.0), 1e9);  // half the rows in the same time
  EXPECT_DOUBLE_EQ(series().rate(1e6), 32e9);
}

TEST(LinkCurve, AddsSetUpOfEveryCopy) {
  const LinkCurve curve{{1e6, 4e6}, {10e9, 20e9}, 5e-6, 32e9, Basis::reference, 0.0};
  EXPECT_DOUBLE_EQ(curve.seconds(0.0, 1e6), 0.0);
  EXPECT_NEAR(curve.seconds(4e6, 4e6), 5e-6 + 200e-6, 1e-12);
  EXPECT_NEAR(curve.seconds(4e6, 1e6), 20e-6 + 400e-6, 1e-12);
  EXPECT_NEAR(curve.seconds(2e6, 8e6), 5e-6 + 2e6 / (10e9 * std::sqrt(2.0)), 1e-12);   // one copy of 2e6, half-way in log space
  EXPECT_NEAR(curve.seconds(5e6, 2e6), 15e-6 + 5e6 / (10e9 * std::sqrt(2.0)), 1e-12);  // two whole copies and a half
}

TEST(LinkCurve, IsNeverFasterThanItsPeak) {
  const LinkCurve curve{{1e6, 4e6}, {10e9, 20e9}, 5e-6, 16e9, Basis::reference, 0.0};
  EXPECT_NEAR(curve.seconds(1e6, 1e6), 5e-6 + 100e-6, 1e-12);
  EXPECT_NEAR(curve.seconds(4e6, 4e6), 5e-6 + 250e-6, 1e-12);
}

Machine machine() {
  Machine m;
  m.ram_bytes = 1;
  m.host_bytes_per_second = 45e9;
  m.cpu.memory_bytes_per_second = 45e9;
  m.cpu.memory_peak_bytes_per_second = 60e9;
  m.cpu.peak_flop_per_second = 1e12;
  m.cpu.mul_mat[12] = series();
  m.gpu = m.cpu;
  m.has_gpu = true;
  m.vram_bytes = 1;
  m.up = {{1e6, 4e6}, {10e9, 20e9}, 5e-6, 32e9, Basis::reference, 0.0};
  m.down = m.up;
  m.pageable_bytes_per_second = 4e9;
  return m;
}

TEST(Check, RefusesDepthsOfAttentionThatDoNotAscend) {
  Machine m = machine();
  m.cpu.attention = {{1024.0, series()}, {4096.0, series(), 1e9}};
  check(m);
  m.cpu.attention[1].depth = 1024.0;
  EXPECT_THROW(check(m), std::invalid_argument);
  m.cpu.attention[1] = {4096.0, {}};
  EXPECT_THROW(check(m), std::invalid_argument);
  m.cpu.attention[1] = {4096.0, series(), -1.0};
  EXPECT_THROW(check(m), std::invalid_argument);
}

std::string refusal(const Machine& m) {
  try {
    check(m);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Check, AcceptsACompleteMachine) { EXPECT_EQ(refusal(machine()), "accepted"); }

TEST(Check, NamesTheField) {
  Machine m = machine();
  m.cpu.mul_mat[12].batch = {1.0, 1.0, 64.0};
  EXPECT_NE(refusal(m).find("cpu.mul_mat[12] does not ascend at point 1"), std::string::npos) << refusal(m);
  m = machine();
  m.gpu.mul_mat_id[8] = {{1.0}, {0.0}, Basis::measured, 0.0};
  EXPECT_NE(refusal(m).find("gpu.mul_mat_id[8] rate 0"), std::string::npos) << refusal(m);
  m = machine();
  m.up.bytes_per_second.pop_back();
  EXPECT_NE(refusal(m).find("up has 2 points and 1 rates"), std::string::npos) << refusal(m);
  m = machine();
  m.down.peak_bytes_per_second = 19e9;
  EXPECT_NE(refusal(m).find("down reaches 20000000000.000000 bytes/s, above peak"), std::string::npos) << refusal(m);
  m = machine();
  m.copy_rate_under_cpu = 1.5;
  EXPECT_NE(refusal(m).find("copy_rate_under_cpu"), std::string::npos) << refusal(m);
  m = machine();
  m.host_bytes_per_second = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(refusal(m).find("host_bytes_per_second"), std::string::npos) << refusal(m);
}

TEST(Check, LooksAtTheLinkOnlyWhereThereIsAGpu) {
  Machine m = machine();
  m.has_gpu = false;
  m.up = {};
  m.gpu = {};
  m.vram_bytes = 0;
  EXPECT_EQ(refusal(m), "accepted");
}

}  // namespace
}  // namespace pshard
