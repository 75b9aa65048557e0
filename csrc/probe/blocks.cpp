#include "probe/blocks.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace pshard {
namespace {

constexpr auto kNone = Rounding::none;
constexpr auto kBy32 = Rounding::by_32;
constexpr auto kBy256 = Rounding::by_256;

constexpr std::array<WeightFormat, kWeightTypes> kFormats{{
    {"F32", 0, 1, sizeof(float), 1, kNone, 0, {-1, -1}},
    {"F16", 1, 1, sizeof(Half), 1, Rounding::half, 0, {-1, -1}},
    {"BF16", 30, 1, sizeof(BFloat), 1, Rounding::bfloat, 0, {-1, -1}},
    {"Q8_0", 8, 32, sizeof(BlockQ8_0), 32, kBy32, 0, {0, -1}},
    {"Q4_0", 2, 32, sizeof(BlockQ4_0), 32, kBy32, 8, {0, -1}},
    {"Q4_1", 3, 32, sizeof(BlockQ4_1), 32, kBy32, 0, {0, 2}},
    {"Q5_0", 6, 32, sizeof(BlockQ5_0), 32, kBy32, 16, {0, -1}},
    {"Q5_1", 7, 32, sizeof(BlockQ5_1), 32, kBy32, 0, {0, 2}},
    {"IQ4_NL", 20, 32, sizeof(BlockIQ4_NL), 32, kBy32, 0, {0, -1}},
    {"MXFP4", 39, 32, sizeof(BlockMXFP4), 32, kBy32, 0, {-1, -1}},
    {"Q2_K", 10, 256, sizeof(BlockQ2_K), 16, kBy256, 0, {80, 82}},
    {"Q3_K", 11, 256, sizeof(BlockQ3_K), 16, kBy256, 4, {108, -1}},
    {"Q4_K", 12, 256, sizeof(BlockQ4_K), 32, kBy256, 0, {0, 2}},
    {"Q5_K", 13, 256, sizeof(BlockQ5_K), 32, kBy256, 0, {0, 2}},
    {"Q6_K", 14, 256, sizeof(BlockQ6_K), 16, kBy256, 32, {208, -1}},
    {"IQ4_XS", 23, 256, sizeof(BlockIQ4_XS), 32, kBy256, 128, {0, -1}},
}};
constexpr std::array<const char*, kLayouts> kLayoutNames{"plain", "interleaved"};

template <std::size_t... types>
constexpr bool agree(std::index_sequence<types...> /*all*/) {
  return ((kFormats[types].bytes == sizeof(std::tuple_element_t<types, Blocks>)) && ...);
}
static_assert(agree(std::make_index_sequence<kWeightTypes>()), "formats and blocks have one order");
static_assert(sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24 && sizeof(BlockMXFP4) == 17);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ5_K) == 176 && sizeof(BlockIQ4_XS) == 136);
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ6_K) == 210);

std::size_t index(WeightType type) { return static_cast<std::size_t>(type); }

// The place of `name` among `n` of them.
template <typename NameAt>
std::size_t place_of(const std::string& name, std::size_t n, NameAt name_at, const char* what) {
  std::string known;
  for (std::size_t i = 0; i < n; ++i) {
    if (name == name_at(i)) return i;
    known += std::string(known.empty() ? "" : ", ") + name_at(i);
  }
  throw std::invalid_argument(std::string(what) + " is '" + name + "', known are " + known);
}

template <typename Block>
Block block_at(const uint8_t* row, int64_t index) {
  Block block;
  std::memcpy(&block, row + index * static_cast<int64_t>(sizeof(Block)), sizeof block);
  return block;
}

void dequantise(float value, double* out) { *out = static_cast<double>(value); }
void dequantise(Half value, double* out) { *out = static_cast<double>(half_to_float(value.bits)); }
void dequantise(BFloat value, double* out) { *out = static_cast<double>(bfloat_to_float(value.bits)); }

// Codes of a block of 32 columns, the fifth bits of which are in `high`.
int code_at(const uint8_t codes[16], int i) { return i < 16 ? codes[i] & 15 : codes[i - 16] >> 4; }
int code_at(const uint8_t codes[16], const uint8_t high[4], int i) { return code_at(codes, i) | (high[i / 8] >> i % 8 & 1) << 4; }

template <typename ValueAt>
void fill(double* out, int n, ValueAt value_at) {
  for (int i = 0; i < n; ++i) out[i] = value_at(i);
}

void dequantise(const BlockQ8_0& block, double* out) {
  const double scale = half_to_float(block.scale);
  fill(out, 32, [&](int i) { return scale * block.codes[i]; });
}

void dequantise(const BlockQ4_0& block, double* out) {
  const double scale = half_to_float(block.scale);
  fill(out, 32, [&](int i) { return scale * (code_at(block.codes, i) - 8); });
}

void dequantise(const BlockQ4_1& block, double* out) {
  const double scale = half_to_float(block.scale);
  const double least = half_to_float(block.least);
  fill(out, 32, [&](int i) { return scale * code_at(block.codes, i) + least; });
}

void dequantise(const BlockQ5_0& block, double* out) {
  const double scale = half_to_float(block.scale);
  fill(out, 32, [&](int i) { return scale * (code_at(block.codes, block.high, i) - 16); });
}

void dequantise(const BlockQ5_1& block, double* out) {
  const double scale = half_to_float(block.scale);
  const double least = half_to_float(block.least);
  fill(out, 32, [&](int i) { return scale * code_at(block.codes, block.high, i) + least; });
}

void dequantise(const BlockIQ4_NL& block, double* out) {
  const double scale = half_to_float(block.scale);
  fill(out, 32, [&](int i) { return scale * kUnevenSteps[code_at(block.codes, i)]; });
}

void dequantise(const BlockMXFP4& block, double* out) {
  const double scale = power_of_two(block.exponent);
  fill(out, 32, [&](int i) { return scale * kFourBitFloats[code_at(block.codes, i)]; });
}

// Two bits of column i: 32 bytes hold four groups of 32 columns.
int two_bits_at(const uint8_t codes[64], int i) { return codes[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3; }

void dequantise(const BlockQ2_K& block, double* out) {
  const double scale = half_to_float(block.scale);
  const double min = half_to_float(block.min);
  fill(out, 256, [&](int i) {
    const uint8_t sub = block.scales[i / 16];
    return scale * (sub & 15) * two_bits_at(block.codes, i) - min * (sub >> 4);
  });
}

void dequantise(const BlockQ3_K& block, double* out) {
  const double scale = half_to_float(block.scale);
  fill(out, 256, [&](int i) {
    const int code = two_bits_at(block.low, i) | (block.high[i % 32] >> i / 32 & 1) << 2;
    return scale * sub_scale(block, i / 16) * (code - 4);
  });
}

// Four bits of column i: 32 bytes hold two groups of 32 columns.
int nibble_at(const uint8_t codes[128], int i) {
  const uint8_t byte = codes[i / 64 * 32 + i % 32];
  return i / 32 % 2 == 0 ? byte & 15 : byte >> 4;
}

template <typename Block, typename CodeAt>
void dequantise_with_mins(const Block& block, double* out, CodeAt code_of) {
  const double scale = half_to_float(block.scale);
  const double min = half_to_float(block.min);
  fill(out, 256, [&](int i) {
    const SubBlock sub = sub_block(block.scales, i / 32);
    return scale * sub.scale * code_of(i) - min * sub.min;
  });
}

void dequantise(const BlockQ4_K& block, double* out) {
  dequantise_with_mins(block, out, [&](int i) { return nibble_at(block.codes, i); });
}

void dequantise(const BlockQ5_K& block, double* out) {
  dequantise_with_mins(block, out, [&](int i) { return nibble_at(block.codes, i) | (block.high[i % 32] >> i / 32 & 1) << 4; });
}

void dequantise(const BlockQ6_K& block, double* out) {
  const double scale = half_to_float(block.scale);
  fill(out, 256, [&](int i) {
    const int half = i / 128;
    const int quarter = i % 128 / 32;
    const uint8_t low = block.low[64 * half + i % 64];
    const uint8_t high = block.high[32 * half + i % 32];
    const int code = (quarter < 2 ? low & 15 : low >> 4) | (high >> (2 * quarter) & 3) << 4;
    return scale * block.scales[i / 16] * (code - 32);
  });
}

void dequantise(const BlockIQ4_XS& block, double* out) {
  const double scale = half_to_float(block.scale);
  fill(out, 256, [&](int i) { return scale * sub_scale(block, i / 32) * kUnevenSteps[code_at(block.codes + i / 32 * 16, i % 32)]; });
}

template <typename Block>
void dequantise_blocks(const uint8_t* row, int64_t n_blocks, int64_t block_columns, double* out) {
  for (int64_t i = 0; i < n_blocks; ++i) dequantise(block_at<Block>(row, i), out + i * block_columns);
}

template <std::size_t... types>
void dequantise_row(std::index_sequence<types...> /*all*/, WeightType type, const uint8_t* row, int64_t n_columns, double* out) {
  using Dequantise = void (*)(const uint8_t*, int64_t, int64_t, double*);
  static constexpr Dequantise by_type[]{dequantise_blocks<std::tuple_element_t<types, Blocks>>...};
  const int64_t columns = format_of(type).columns;
  by_type[index(type)](row, n_columns / columns, columns, out);
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

using InterleaveGroup = void (*)(const uint8_t*, int64_t, uint8_t*);

InterleaveGroup group_of(WeightType type) {
  switch (type) {
    case WeightType::q4_0:
      return interleave_group<BlockQ4_0>;
    case WeightType::iq4_nl:
      return interleave_group<BlockIQ4_NL>;
    case WeightType::mxfp4:
      return interleave_group<BlockMXFP4>;
    case WeightType::q4_k:
      return interleave_group<BlockQ4_K>;
    default:
      throw std::invalid_argument(name_of(type) + " is not interleaved");
  }
}

}  // namespace

WeightType weight_type(const std::string& name) {
  return static_cast<WeightType>(place_of(
      name, kFormats.size(), [](std::size_t i) { return kFormats[i].name; }, "type"));
}
Layout layout(const std::string& name) {
  return static_cast<Layout>(place_of(
      name, kLayoutNames.size(), [](std::size_t i) { return kLayoutNames[i]; }, "layout"));
}

std::string name_of(WeightType type) { return format_of(type).name; }

std::optional<WeightType> weight_type_of(int32_t number) {
  for (std::size_t i = 0; i < kFormats.size(); ++i) {
    if (kFormats[i].number == number) return static_cast<WeightType>(i);
  }
  return std::nullopt;
}

std::string names_of(bool (*is_meant)(WeightType)) {
  std::string names;
  for (std::size_t i = 0; i < kFormats.size(); ++i) {
    if (is_meant(static_cast<WeightType>(i))) names += std::string(names.empty() ? "" : ", ") + kFormats[i].name;
  }
  return names;
}

const WeightFormat& format_of(WeightType type) { return kFormats[index(type)]; }

int64_t row_bytes(WeightType type, int64_t n_columns) {
  const WeightFormat& shape = format_of(type);
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

float bfloat_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t float_to_bfloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

float power_of_two(uint8_t exponent) {
  // The two smallest are subnormal.
  return std::bit_cast<float>(exponent < 2 ? 0x00200000U << exponent : (exponent - 1U) << 23);
}

SubBlock sub_block(const uint8_t scales[12], int index) {
  if (index < 4) return {static_cast<uint8_t>(scales[index] & 63), static_cast<uint8_t>(scales[index + 4] & 63)};
  const int low = scales[index + 4];
  return {static_cast<uint8_t>((low & 15) | scales[index - 4] >> 6 << 4), static_cast<uint8_t>(low >> 4 | scales[index] >> 6 << 4)};
}

int sub_scale(const BlockQ3_K& block, int index) {
  const int low = index < 8 ? block.scales[index] & 15 : block.scales[index - 8] >> 4;
  return (low | (block.scales[8 + index % 4] >> 2 * (index / 4) & 3) << 4) - 32;
}

int sub_scale(const BlockIQ4_XS& block, int index) {
  const int low = block.low_scales[index / 2] >> 4 * (index % 2) & 15;
  return (low | (block.high_scales >> 2 * index & 3) << 4) - 32;
}

void dequantise_row(WeightType type, const uint8_t* row, int64_t n_columns, double* out) {
  dequantise_row(std::make_index_sequence<kWeightTypes>(), type, row, n_columns, out);
}

void interleave_rows(WeightType type, const uint8_t* plain, int64_t n_rows, int64_t n_columns, uint8_t* out) {
  if (n_rows % kGroupRows != 0) {
    throw std::invalid_argument("n_rows is " + std::to_string(n_rows) + ", interleaving takes groups of " + std::to_string(kGroupRows));
  }
  const auto interleave = group_of(type);
  const int64_t stride = row_bytes(type, n_columns);
  for (int64_t first = 0; first < n_rows; first += kGroupRows) interleave(plain + first * stride, stride, out + first * stride);
}

}  // namespace pshard
