#include "probe/blocks.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

namespace pshard {
namespace {

constexpr std::array<const char*, kWeightTypes> kTypeNames{"F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"};
constexpr std::array<const char*, kLayouts> kLayoutNames{"plain", "interleaved"};

template <typename Enum, std::size_t n>
Enum by_name(const std::array<const char*, n>& names, const std::string& name, const char* what) {
  std::string known;
  for (std::size_t i = 0; i < n; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    known += std::string(known.empty() ? "" : ", ") + names[i];
  }
  throw std::invalid_argument(std::string(what) + " is '" + name + "', there are kernels for " + known);
}

template <typename Block>
Block block_at(const uint8_t* row, int64_t index) {
  Block block;
  std::memcpy(&block, row + index * static_cast<int64_t>(sizeof(Block)), sizeof block);
  return block;
}

void dequantise(const BlockQ4_0& block, double* out) {
  const double scale = half_to_float(block.scale);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * ((block.codes[i] & 15) - 8);
    out[i + 16] = scale * ((block.codes[i] >> 4) - 8);
  }
}

void dequantise(const BlockQ8_0& block, double* out) {
  const double scale = half_to_float(block.scale);
  for (int i = 0; i < 32; ++i) out[i] = scale * block.codes[i];
}

void dequantise(const BlockQ4_K& block, double* out) {
  const double scale = half_to_float(block.scale);
  const double min = half_to_float(block.min);
  for (int i = 0; i < 256; ++i) {
    const uint8_t byte = block.codes[i / 64 * 32 + i % 32];
    const SubBlock sub = sub_block(block.scales, i / 32);
    out[i] = scale * sub.scale * (i / 32 % 2 == 0 ? byte & 15 : byte >> 4) - min * sub.min;
  }
}

void dequantise(const BlockQ6_K& block, double* out) {
  const double scale = half_to_float(block.scale);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128;
    const int quarter = i % 128 / 32;
    const uint8_t low = block.low[64 * half + i % 64];
    const uint8_t high = block.high[32 * half + i % 32];
    const int code = (quarter < 2 ? low & 15 : low >> 4) | (high >> (2 * quarter) & 3) << 4;
    out[i] = scale * block.scales[i / 16] * (code - 32);
  }
}

template <typename Block>
void dequantise_blocks(const uint8_t* row, int64_t n_columns, int64_t block_columns, double* out) {
  for (int64_t i = 0; i < n_columns / block_columns; ++i) dequantise(block_at<Block>(row, i), out + i * block_columns);
}

// Moves piece `index` of `bytes` bytes of every row of a group next to each other.
template <typename Block>
void interleave_group(const uint8_t* plain, int64_t stride, uint8_t* out) {
  constexpr int64_t block_bytes = sizeof(Block);
  for (int64_t at = 0; at < stride; at += block_bytes) {
    for (int64_t offset = 0; offset < block_bytes; offset += piece_bytes<Block>(offset)) {
      const int64_t bytes = piece_bytes<Block>(offset);
      for (int row = 0; row < kGroupRows; ++row, out += bytes) {
        std::memcpy(out, plain + row * stride + at + offset, static_cast<std::size_t>(bytes));
      }
    }
  }
}

}  // namespace

WeightType weight_type(const std::string& name) { return by_name<WeightType>(kTypeNames, name, "type"); }
Layout layout(const std::string& name) { return by_name<Layout>(kLayoutNames, name, "layout"); }

std::string name_of(WeightType type) { return kTypeNames[static_cast<std::size_t>(type)]; }

const BlockShape& block_shape(WeightType type) {
  static constexpr std::array<BlockShape, kWeightTypes> shapes{{
      {1, 2, 1, 0, 0},
      {32, sizeof(BlockQ8_0), 32, 32, 0},
      {32, sizeof(BlockQ4_0), 32, 32, 8},
      {256, sizeof(BlockQ4_K), 32, 256, 0},
      {256, sizeof(BlockQ6_K), 16, 256, 32},
  }};
  return shapes[static_cast<std::size_t>(type)];
}

int64_t row_bytes(WeightType type, int64_t n_columns) {
  const BlockShape& shape = block_shape(type);
  if (n_columns <= 0 || n_columns % shape.columns != 0) {
    throw std::invalid_argument("n_columns is " + std::to_string(n_columns) + ", " + name_of(type) + " needs a positive multiple of " +
                                std::to_string(shape.columns));
  }
  return n_columns / shape.columns * shape.bytes;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000U} << 16;
  const uint32_t exponent = half >> 10 & 31U;
  const uint32_t fraction = half & 0x3ffU;
  if (exponent == 0) {  // subnormal: a whole number of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | biased << 23 | fraction << 13);
}

uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000U);
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffU);
  if (magnitude != magnitude) return static_cast<uint16_t>(sign | 0x7e00U);
  if (magnitude >= 65520.0F) return static_cast<uint16_t>(sign | 0x7c00U);
  if (magnitude < 0x1p-14F) {  // adding a half aligns the fraction to steps of 2^-24 and rounds it
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(magnitude + 0.5F) - std::bit_cast<uint32_t>(0.5F)));
  }
  const uint32_t absolute = bits & 0x7fffffffU;
  const uint32_t rounded = absolute + 0xfffU + (absolute >> 13 & 1U);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112U << 10)));
}

SubBlock sub_block(const uint8_t scales[12], int index) {
  if (index < 4) return {static_cast<uint8_t>(scales[index] & 63), static_cast<uint8_t>(scales[index + 4] & 63)};
  const int low = scales[index + 4];
  return {static_cast<uint8_t>((low & 15) | scales[index - 4] >> 6 << 4), static_cast<uint8_t>(low >> 4 | scales[index] >> 6 << 4)};
}

void dequantise_row(WeightType type, const uint8_t* row, int64_t n_columns, double* out) {
  const int64_t columns = block_shape(type).columns;
  switch (type) {
    case WeightType::f16:
      for (int64_t i = 0; i < n_columns; ++i) out[i] = half_to_float(block_at<uint16_t>(row, i));
      return;
    case WeightType::q8_0:
      return dequantise_blocks<BlockQ8_0>(row, n_columns, columns, out);
    case WeightType::q4_0:
      return dequantise_blocks<BlockQ4_0>(row, n_columns, columns, out);
    case WeightType::q4_k:
      return dequantise_blocks<BlockQ4_K>(row, n_columns, columns, out);
    case WeightType::q6_k:
      return dequantise_blocks<BlockQ6_K>(row, n_columns, columns, out);
  }
}

void interleave_rows(WeightType type, const uint8_t* plain, int64_t n_rows, int64_t n_columns, uint8_t* out) {
  if (type != WeightType::q4_0 && type != WeightType::q4_k) {
    throw std::invalid_argument("only Q4_0 and Q4_K have an interleaved layout");
  }
  if (n_rows % kGroupRows != 0) {
    throw std::invalid_argument("n_rows is " + std::to_string(n_rows) + ", interleaving takes groups of " + std::to_string(kGroupRows));
  }
  const int64_t stride = row_bytes(type, n_columns);
  const auto interleave = type == WeightType::q4_0 ? interleave_group<BlockQ4_0> : interleave_group<BlockQ4_K>;
  for (int64_t first = 0; first < n_rows; first += kGroupRows) interleave(plain + first * stride, stride, out + first * stride);
}

}  // namespace pshard
