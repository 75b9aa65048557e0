// Blocks as whole numbers, in plain C++.
#pragma once

#include <cstring>

#include "probe/blocks.hpp"

namespace pshard {
namespace {

// weight = scale * code - min, one scale and min per sub-block.
struct Decoded {
  int8_t codes[256];
  float scales[16];
  float mins[16];
};

template <typename Block>
inline constexpr bool kHasMins = requires(Block block) {
  block.min;
}
|| requires(Block block) { block.least; };

// Calls `set` with the place and the value of all nibbles: the low ones of `n` bytes, then the high ones.
template <typename Set>
void each_nibble(const uint8_t* bytes, int n, Set set) {
  for (int i = 0; i < n; ++i) {
    set(i, bytes[i] & 15);
    set(i + n, bytes[i] >> 4);
  }
}

inline void decode(const BlockQ8_0& block, Decoded& out) {
  std::memcpy(out.codes, block.codes, sizeof block.codes);
  out.scales[0] = half_to_float(block.scale);
}

inline void decode(const BlockQ4_0& block, Decoded& out) {
  each_nibble(block.codes, 16, [&](int i, int code) { out.codes[i] = static_cast<int8_t>(code - 8); });
  out.scales[0] = half_to_float(block.scale);
}

inline void decode(const BlockQ4_1& block, Decoded& out) {
  each_nibble(block.codes, 16, [&](int i, int code) { out.codes[i] = static_cast<int8_t>(code); });
  out.scales[0] = half_to_float(block.scale);
  out.mins[0] = -half_to_float(block.least);
}

template <typename Block>
void decode_five_bits(const Block& block, int offset, Decoded& out) {
  each_nibble(block.codes, 16, [&](int i, int code) {
    const int bit = block.high[i / 8] >> i % 8 & 1;
    out.codes[i] = static_cast<int8_t>(code + 16 * bit - offset);
  });
  out.scales[0] = half_to_float(block.scale);
}

inline void decode(const BlockQ5_0& block, Decoded& out) { decode_five_bits(block, 16, out); }

inline void decode(const BlockQ5_1& block, Decoded& out) {
  decode_five_bits(block, 0, out);
  out.mins[0] = -half_to_float(block.least);
}

inline void decode(const BlockIQ4_NL& block, Decoded& out) {
  each_nibble(block.codes, 16, [&](int i, int code) { out.codes[i] = kUnevenSteps[code]; });
  out.scales[0] = half_to_float(block.scale);
}

inline void decode(const BlockMXFP4& block, Decoded& out) {
  each_nibble(block.codes, 16, [&](int i, int code) { out.codes[i] = kFourBitFloats[code]; });
  out.scales[0] = power_of_two(block.exponent);
}

// Two bits of each of 128 columns, from 32 bytes.
template <typename Set>
void each_two_bits(const uint8_t* bytes, Set set) {
  for (int i = 0; i < 32; ++i) {
    for (int group = 0; group < 4; ++group) set(32 * group + i, bytes[i] >> 2 * group & 3);
  }
}

inline void decode(const BlockQ2_K& block, Decoded& out) {
  for (int half = 0; half < 2; ++half) {
    each_two_bits(block.codes + 32 * half, [&](int i, int code) { out.codes[128 * half + i] = static_cast<int8_t>(code); });
  }
  for (int sub = 0; sub < 16; ++sub) {
    out.scales[sub] = half_to_float(block.scale) * static_cast<float>(block.scales[sub] & 15);
    out.mins[sub] = half_to_float(block.min) * static_cast<float>(block.scales[sub] >> 4);
  }
}

inline void decode(const BlockQ3_K& block, Decoded& out) {
  for (int half = 0; half < 2; ++half) {
    each_two_bits(block.low + 32 * half, [&](int i, int code) {
      const int column = 128 * half + i;
      const bool is_high = (block.high[column % 32] & 1 << column / 32) != 0;
      out.codes[column] = static_cast<int8_t>(is_high ? code : code - 4);
    });
  }
  for (int sub = 0; sub < 16; ++sub) out.scales[sub] = half_to_float(block.scale) * static_cast<float>(sub_scale(block, sub));
}

// Scales and mins of Q4_K and Q5_K.
template <typename Block>
void decode_scales(const Block& block, Decoded& out) {
  for (int sub = 0; sub < 8; ++sub) {
    const SubBlock both = sub_block(block.scales, sub);
    out.scales[sub] = half_to_float(block.scale) * both.scale;
    out.mins[sub] = half_to_float(block.min) * both.min;
  }
}

inline void decode(const BlockQ4_K& block, Decoded& out) {
  for (int pair = 0; pair < 4; ++pair) {
    each_nibble(block.codes + 32 * pair, 32, [&](int i, int code) { out.codes[64 * pair + i] = static_cast<int8_t>(code); });
  }
  decode_scales(block, out);
}

inline void decode(const BlockQ5_K& block, Decoded& out) {
  for (int pair = 0; pair < 4; ++pair) {
    each_nibble(block.codes + 32 * pair, 32, [&](int i, int code) {
      const int column = 64 * pair + i;
      const int bit = block.high[column % 32] >> column / 32 & 1;
      out.codes[column] = static_cast<int8_t>(code + 16 * bit);
    });
  }
  decode_scales(block, out);
}

inline void decode(const BlockQ6_K& block, Decoded& out) {
  for (int half = 0; half < 2; ++half) {
    each_nibble(block.low + 64 * half, 64, [&](int i, int code) {
      const int high = block.high[32 * half + i % 32] >> 2 * (i / 32) & 3;
      out.codes[128 * half + i] = static_cast<int8_t>((code | high << 4) - 32);
    });
  }
  for (int sub = 0; sub < 16; ++sub) out.scales[sub] = half_to_float(block.scale) * block.scales[sub];
}

inline void decode(const BlockIQ4_XS& block, Decoded& out) {
  for (int sub = 0; sub < 8; ++sub) {
    each_nibble(block.codes + 16 * sub, 16, [&](int i, int code) { out.codes[32 * sub + i] = kUnevenSteps[code]; });
    out.scales[sub] = half_to_float(block.scale) * static_cast<float>(sub_scale(block, sub));
  }
}

}  // namespace
}  // namespace pshard
