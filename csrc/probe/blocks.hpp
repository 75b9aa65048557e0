// Blocks of quantised weights, as GGUF stores them, and rows interleaved in groups so that one vector holds the same columns of several
// rows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "probe/block_layouts.hpp"

namespace pshard {

enum class Layout : uint8_t { plain, interleaved };
inline constexpr int kLayouts = 2;

// Names as gguf writes them. Throw std::invalid_argument, naming those that there are.
[[nodiscard]] WeightType weight_type(const std::string& name);
[[nodiscard]] Layout layout(const std::string& name);
[[nodiscard]] std::string name_of(WeightType type);

// By the number that ggml gives it; none where it is not known here.
[[nodiscard]] std::optional<WeightType> weight_type_of(int32_t number);

// Of the types that `is_meant` holds for, separated by commas.
[[nodiscard]] std::string names_of(bool (*is_meant)(WeightType));

// How activations are rounded before they are multiplied, as llama.cpp does: to eight bits with a scale per 32 or per 256 columns, to a
// sixteen-bit float, or not at all.
enum class Rounding : uint8_t { none, half, bfloat, by_32, by_256 };

struct WeightFormat {
  const char* name;
  int32_t number;  // ggml's
  int64_t columns;
  int64_t bytes;
  int64_t sub_columns;  // that share one scale
  Rounding rounding;
  int32_t offset;          // by which codes are larger than what they stand for, where kernels take them without a sign
  int32_t half_places[2];  // of the block's scales in F16; -1: none
};
[[nodiscard]] const WeightFormat& format_of(WeightType type);
[[nodiscard]] int64_t row_bytes(WeightType type, int64_t n_columns);

[[nodiscard]] float half_to_float(uint16_t half);
[[nodiscard]] uint16_t float_to_half(float value);  // to nearest even
[[nodiscard]] float bfloat_to_float(uint16_t bits);
[[nodiscard]] uint16_t float_to_bfloat(float value);  // to nearest even; finite
[[nodiscard]] float power_of_two(uint8_t exponent);   // the scale of an MXFP4 block

// The scale and min of a sub-block of Q4_K or Q5_K, 6 bits each.
struct SubBlock {
  uint8_t scale;
  uint8_t min;
};
[[nodiscard]] SubBlock sub_block(const uint8_t scales[12], int index);
[[nodiscard]] int sub_scale(const BlockQ3_K& block, int index);
[[nodiscard]] int sub_scale(const BlockIQ4_XS& block, int index);

// One row in plain layout as numbers, exact in double.
void dequantise_row(WeightType type, const uint8_t* row, int64_t n_columns, double* out);

inline constexpr int kGroupRows = 8;  // that are interleaved, as llama.cpp does for AVX2 and AVX-512

// Bytes from `offset` of a block on that stay together when rows are interleaved: a scale, a word of a K block's six-bit scales, or eight
// bytes of codes.
template <typename Block>
constexpr int64_t piece_bytes(int64_t offset) {
  if constexpr (std::is_same_v<Block, BlockQ4_K>) return offset < 4 ? 2 : offset < 16 ? 4 : 8;
  constexpr int64_t scale = sizeof(Block) - sizeof(Block::codes);
  return offset < scale ? scale : 8;
}

// `n_rows` plain rows, a multiple of kGroupRows, to interleaved ones of the same size: within a block, each piece of all rows of the group
// comes next to that of the next row, as in llama.cpp.
void interleave_rows(WeightType type, const uint8_t* plain, int64_t n_rows, int64_t n_columns, uint8_t* out);

}  // namespace pshard
