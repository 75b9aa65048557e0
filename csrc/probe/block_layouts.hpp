// What rows of weights consist of, by type, as GGUF stores them.
#pragma once

#include <cstdint>
#include <tuple>

namespace pshard {

enum class WeightType : uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl, mxfp4, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs };
inline constexpr int kWeightTypes = 16;

// Numbers that are stored as they are. A BF16 is the upper half of a float.
struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

struct BlockQ4_0 {
  uint16_t scale;     // F16
  uint8_t codes[16];  // columns 0 to 15 in the low nibbles, 16 to 31 in the high ones; weight = scale * (code - 8)
};

struct BlockQ8_0 {
  uint16_t scale;
  int8_t codes[32];
};

struct BlockQ4_1 {  // as Q4_0, weight = scale * code + least
  uint16_t scale;
  uint16_t least;
  uint8_t codes[16];
};

// As Q4_0 with a fifth bit: bit i of `high` is that of column i. weight = scale * (code - 16).
struct BlockQ5_0 {
  uint16_t scale;
  uint8_t high[4];
  uint8_t codes[16];
};

struct BlockQ5_1 {  // weight = scale * code + least
  uint16_t scale;
  uint16_t least;
  uint8_t high[4];
  uint8_t codes[16];
};

struct BlockIQ4_NL {  // as Q4_0, weight = scale * kUnevenSteps[code]
  uint16_t scale;
  uint8_t codes[16];
};

struct BlockMXFP4 {  // as Q4_0, weight = 2^(exponent - 128) * kFourBitFloats[code]
  uint8_t exponent;
  uint8_t codes[16];
};

// Sixteen sub-blocks of 16 columns: weight = scale * low nibble of the sub-block's byte * code - min * its high nibble. 32 bytes of codes
// hold 128 columns: the lowest two bits of each are the first 32, the next two the next.
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t codes[64];
  uint16_t scale;
  uint16_t min;
};

// Low bits as in Q2_K. Bit i of high[c] is the third of column 32 * i + c. Sixteen sub-blocks: weight = scale * (scale of the sub-block -
// 32) * (code - 4).
struct BlockQ3_K {
  uint8_t high[32];
  uint8_t low[64];
  uint8_t scales[12];  // four bits each, eight in the low nibbles and eight in the high ones; then the upper two bits, four to a byte
  uint16_t scale;
};

// Eight sub-blocks of 32 columns: weight = scale * scale of the sub-block * code - min * min of the sub-block.
struct BlockQ4_K {
  uint16_t scale;
  uint16_t min;
  uint8_t scales[12];  // of the sub-blocks, 6 bits each, then their mins
  uint8_t codes[128];  // 32 bytes hold two sub-blocks: low nibbles, high nibbles
};

// As Q4_K with a fifth bit: bit i of high[c] is that of column 32 * i + c.
struct BlockQ5_K {
  uint16_t scale;
  uint16_t min;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t codes[128];
};

// Sixteen sub-blocks of 16 columns: weight = scale * scale of the sub-block * (code - 32). Half a block is 128 columns: 64 bytes of low
// bits and 32 of high ones.
struct BlockQ6_K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t scale;
};

// Eight sub-blocks of 32 columns, each with the codes of an IQ4_NL block: weight = scale * (scale of the sub-block - 32) * step.
struct BlockIQ4_XS {
  uint16_t scale;
  uint16_t high_scales;  // the upper two bits of the sub-blocks' scales
  uint8_t low_scales[4];
  uint8_t codes[128];
};

inline constexpr int8_t kUnevenSteps[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
inline constexpr int8_t kFourBitFloats[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // twice their values

// What a type's rows consist of, in the order of WeightType.
using Blocks = std::tuple<float, Half, BFloat, BlockQ8_0, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockIQ4_NL, BlockMXFP4, BlockQ2_K,
                          BlockQ3_K, BlockQ4_K, BlockQ5_K, BlockQ6_K, BlockIQ4_XS>;
static_assert(std::tuple_size_v<Blocks> == kWeightTypes);
template <WeightType type>
using BlockOf = std::tuple_element_t<static_cast<std::size_t>(type), Blocks>;

}  // namespace pshard
