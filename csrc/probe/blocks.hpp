// Blocks of quantised weights, as GGUF stores them, and rows interleaved in groups so that one vector holds the same columns of several
// rows.
#pragma once

#include <cstdint>
#include <string>

namespace pshard {

enum class WeightType : uint8_t { f16, q8_0, q4_0, q4_k, q6_k };
inline constexpr int kWeightTypes = 5;

enum class Layout : uint8_t { plain, interleaved };
inline constexpr int kLayouts = 2;

// Names as gguf writes them. Throw std::invalid_argument, naming those that there are.
[[nodiscard]] WeightType weight_type(const std::string& name);
[[nodiscard]] Layout layout(const std::string& name);
[[nodiscard]] std::string name_of(WeightType type);

struct BlockQ4_0 {
  uint16_t scale;     // F16
  uint8_t codes[16];  // columns 0 to 15 in the low nibbles, 16 to 31 in the high ones; weight = scale * (code - 8)
};

struct BlockQ8_0 {
  uint16_t scale;
  int8_t codes[32];
};

// Eight sub-blocks of 32 columns: weight = scale * scale of the sub-block * code - min * min of the sub-block.
struct BlockQ4_K {
  uint16_t scale;
  uint16_t min;
  uint8_t scales[12];  // of the sub-blocks, 6 bits each, then their mins
  uint8_t codes[128];  // 32 bytes hold two sub-blocks: low nibbles, high nibbles
};

// Sixteen sub-blocks of 16 columns: weight = scale * scale of the sub-block * (code - 32). Half a block is 128 columns: 64 bytes of low
// bits and 32 of high ones.
struct BlockQ6_K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t scale;
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ6_K) == 210);

struct BlockShape {
  int64_t columns;
  int64_t bytes;
  int64_t sub_columns;         // that share one scale
  int64_t activation_columns;  // that share one scale of the activations; 0: they stay F16
  int32_t offset;              // subtracted from every stored code
};
[[nodiscard]] const BlockShape& block_shape(WeightType type);
[[nodiscard]] int64_t row_bytes(WeightType type, int64_t n_columns);

[[nodiscard]] float half_to_float(uint16_t half);
[[nodiscard]] uint16_t float_to_half(float value);  // to nearest even

// The scale and min of a sub-block of Q4_K, 6 bits each.
struct SubBlock {
  uint8_t scale;
  uint8_t min;
};
[[nodiscard]] SubBlock sub_block(const uint8_t scales[12], int index);

// One row in plain layout as numbers, exact in double.
void dequantise_row(WeightType type, const uint8_t* row, int64_t n_columns, double* out);

inline constexpr int kGroupRows = 8;  // that are interleaved, as llama.cpp does for AVX2 and AVX-512

// Bytes from `offset` of a block on that stay together when rows are interleaved: an F16 scale, a word of a K block's six-bit scales, or
// eight bytes of codes.
template <typename Block>
constexpr int64_t piece_bytes(int64_t offset) {
  constexpr bool is_k = sizeof(Block) == sizeof(BlockQ4_K);
  if (offset < (is_k ? 4 : 2)) return 2;
  return is_k && offset < 16 ? 4 : 8;
}

// `n_rows` plain rows, a multiple of kGroupRows, to interleaved ones of the same size: within a block, each piece of all rows of the group
// comes next to that of the next row, as in llama.cpp.
void interleave_rows(WeightType type, const uint8_t* plain, int64_t n_rows, int64_t n_columns, uint8_t* out);

}  // namespace pshard
