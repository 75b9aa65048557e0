#include "probe/blocks.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

namespace pshard {
namespace {

TEST(Half, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = half_to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(value)))) << bits;
    } else {
      EXPECT_EQ(float_to_half(value), half) << bits;
    }
  }
}

TEST(Half, KnownValues) {
  EXPECT_EQ(half_to_float(0x3c00), 1.0F);
  EXPECT_EQ(half_to_float(0x0001), 0x1p-24F);
  EXPECT_EQ(half_to_float(0xfbff), -65504.0F);
  EXPECT_TRUE(std::isinf(half_to_float(0x7c00)));
}

TEST(Half, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(float_to_half(1.0F + 0x1p-11F), 0x3c00);
  EXPECT_EQ(float_to_half(1.0F + 0x1.8p-10F), 0x3c02);
  EXPECT_EQ(float_to_half(1.0F + 0x1.02p-11F), 0x3c01);
  EXPECT_EQ(float_to_half(0x1p-25F), 0x0000);
  EXPECT_EQ(float_to_half(0x1.8p-24F), 0x0002);
  EXPECT_EQ(float_to_half(65519.0F), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0F), 0x7c00);
}

TEST(Half, BFloatsRoundToNearestAndTiesToEven) {
  EXPECT_EQ(bfloat_to_float(0x3f80), 1.0F);
  EXPECT_EQ(float_to_bfloat(1.0F + 0x1p-8F), 0x3f80);
  EXPECT_EQ(float_to_bfloat(1.0F + 0x1.8p-7F), 0x3f82);
  EXPECT_EQ(float_to_bfloat(-1.0F - 0x1.02p-8F), 0xbf81);
}

TEST(Half, PowersOfTwoReachIntoSubnormals) {
  EXPECT_EQ(power_of_two(0), 0x1p-128F);
  EXPECT_EQ(power_of_two(1), 0x1p-127F);
  EXPECT_EQ(power_of_two(2), 0x1p-126F);
  EXPECT_EQ(power_of_two(128), 1.0F);
  EXPECT_EQ(power_of_two(255), 0x1p127F);
}

TEST(Blocks, NamesAreThoseOfGguf) {
  EXPECT_EQ(weight_type("Q6_K"), WeightType::q6_k);
  EXPECT_EQ(layout("interleaved"), Layout::interleaved);
  EXPECT_THROW(static_cast<void>(weight_type("IQ2_S")), std::invalid_argument);
  EXPECT_EQ(weight_type_of(39), WeightType::mxfp4);
  EXPECT_EQ(weight_type_of(4), std::nullopt);
  for (int i = 0; i < kWeightTypes; ++i) EXPECT_EQ(weight_type(name_of(static_cast<WeightType>(i))), static_cast<WeightType>(i));
  EXPECT_THROW(static_cast<void>(layout("rows")), std::invalid_argument);
}

TEST(Blocks, RowsHaveWholeBlocks) {
  EXPECT_EQ(row_bytes(WeightType::q4_k, 512), 288);
  EXPECT_EQ(row_bytes(WeightType::f16, 5), 10);
  EXPECT_THROW(static_cast<void>(row_bytes(WeightType::q8_0, 48)), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(row_bytes(WeightType::q8_0, 0)), std::invalid_argument);
}

TEST(Interleave, MovesEveryByteAndNoOther) {
  constexpr int64_t n_rows = 2 * kGroupRows, n_columns = 64, stride = 36;
  ASSERT_EQ(row_bytes(WeightType::q4_0, n_columns), stride);
  std::vector<uint16_t> places(static_cast<std::size_t>(n_rows * stride));
  std::vector<uint8_t> plain(places.size()), out(places.size());
  // Which byte goes where, told by its place's low byte and then by its high one.
  for (const int shift : {0, 8}) {
    for (std::size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<uint8_t>(i >> shift);
    interleave_rows(WeightType::q4_0, plain.data(), n_rows, n_columns, out.data());
    for (std::size_t i = 0; i < out.size(); ++i) places[i] = static_cast<uint16_t>(places[i] | out[i] << shift);
  }
  // a group: for each block the scales of its rows, then, twice, eight bytes of codes of each row
  std::size_t at = 0;
  for (int64_t group = 0; group < 2; ++group) {
    for (int64_t block = 0; block < 2; ++block) {
      for (const auto& [offset, size] : {std::pair{0, 2}, {2, 8}, {10, 8}}) {
        for (int64_t row = 0; row < kGroupRows; ++row) {
          for (int byte = 0; byte < size; ++byte) {
            ASSERT_EQ(places[at++], (group * kGroupRows + row) * stride + block * 18 + offset + byte);
          }
        }
      }
    }
  }
  EXPECT_THROW(interleave_rows(WeightType::q4_0, plain.data(), 6, n_columns, out.data()), std::invalid_argument);
  EXPECT_THROW(interleave_rows(WeightType::q8_0, plain.data(), 8, n_columns, out.data()), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
