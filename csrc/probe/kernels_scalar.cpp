// Kernels in plain C++, for CPUs that the others do not cover and to hold the others against.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "probe/kernels.hpp"
#include "probe/softmax_row.hpp"

namespace pshard {
namespace {

// A block as whole numbers: weight = scale * code - min, one scale and min per sub-block.
struct Decoded {
  int8_t codes[256];
  float scales[16];
  float mins[16];
};

void decode(const BlockQ8_0& block, Decoded& out) {
  std::memcpy(out.codes, block.codes, sizeof block.codes);
  out.scales[0] = half_to_float(block.scale);
}

void decode(const BlockQ4_0& block, Decoded& out) {
  for (int i = 0; i < 16; ++i) {
    out.codes[i] = static_cast<int8_t>((block.codes[i] & 15) - 8);
    out.codes[i + 16] = static_cast<int8_t>((block.codes[i] >> 4) - 8);
  }
  out.scales[0] = half_to_float(block.scale);
}

void decode(const BlockQ4_K& block, Decoded& out) {
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = block.codes[32 * pair + i];
      out.codes[64 * pair + i] = static_cast<int8_t>(byte & 15);
      out.codes[64 * pair + 32 + i] = static_cast<int8_t>(byte >> 4);
    }
  }
  for (int sub = 0; sub < 8; ++sub) {
    const SubBlock both = sub_block(block.scales, sub);
    out.scales[sub] = half_to_float(block.scale) * both.scale;
    out.mins[sub] = half_to_float(block.min) * both.min;
  }
}

void decode(const BlockQ6_K& block, Decoded& out) {
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 32; ++i) {
      const int low = block.low[64 * half + i];
      const int next = block.low[64 * half + 32 + i];
      const int high = block.high[32 * half + i];
      int8_t* codes = out.codes + 128 * half + i;
      codes[0] = static_cast<int8_t>(((low & 15) | (high & 3) << 4) - 32);
      codes[32] = static_cast<int8_t>(((next & 15) | (high >> 2 & 3) << 4) - 32);
      codes[64] = static_cast<int8_t>((low >> 4 | (high >> 4 & 3) << 4) - 32);
      codes[96] = static_cast<int8_t>((next >> 4 | high >> 6 << 4) - 32);
    }
  }
  for (int sub = 0; sub < 16; ++sub) out.scales[sub] = half_to_float(block.scale) * block.scales[sub];
}

// Block `index` of row `row`, taken together again from a group of interleaved rows.
template <typename Block, Layout kLayout>
Block block_of(const uint8_t* weights, int64_t n_blocks, int64_t row, int64_t index) {
  Block block;
  constexpr int64_t bytes = sizeof(Block);
  if constexpr (kLayout == Layout::plain) {
    std::memcpy(&block, weights + (row * n_blocks + index) * bytes, sizeof block);
  } else {
    const uint8_t* group = weights + (row / kGroupRows * n_blocks + index) * bytes * kGroupRows;
    auto* to = reinterpret_cast<uint8_t*>(&block);
    for (int64_t at = 0; at < bytes;) {
      const int64_t piece = piece_bytes<Block>(at);
      std::memcpy(to + at, group + at * kGroupRows + row % kGroupRows * piece, static_cast<std::size_t>(piece));
      at += piece;
    }
  }
  return block;
}

template <typename Block, WeightType kType, Layout kLayout>
void multiply(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out, int64_t out_stride,
              uint8_t* /*scratch*/) {
  const BlockShape& shape = block_shape(kType);
  const int64_t n_blocks = x.n_columns / shape.columns;
  const int64_t subs = shape.columns / shape.sub_columns;
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t j = first; j < last; ++j) out[j * out_stride + row] = 0.0F;
    for (int64_t index = 0; index < n_blocks; ++index) {
      Decoded block;
      decode(block_of<Block, kLayout>(weights, n_blocks, row, index), block);
      for (int64_t j = first; j < last; ++j) {
        const int8_t* codes = x.codes + j * x.n_columns + index * shape.columns;
        float part = 0.0F;
        for (int64_t sub = 0; sub < subs; ++sub) {
          int32_t sum = 0;
          for (int64_t i = sub * shape.sub_columns; i < (sub + 1) * shape.sub_columns; ++i) sum += block.codes[i] * codes[i];
          part += block.scales[sub] * static_cast<float>(sum);
          if constexpr (kType == WeightType::q4_k) part -= block.mins[sub] * x.sums[j * x.n_sub_blocks + index * subs + sub];
        }
        out[j * out_stride + row] += part * x.scales[j * x.n_scales + index * shape.columns / shape.activation_columns];
      }
    }
  }
}

void half_products(Rows<const uint16_t> rows, Rows<const uint16_t> x, int64_t n_columns, Rows<float> out) {
  for (int64_t i = 0; i < rows.n; ++i) {
    for (int64_t j = 0; j < x.n; ++j) {
      float sum = 0.0F;
      for (int64_t c = 0; c < n_columns; ++c) {
        sum += half_to_float(rows.data[i * rows.stride + c]) * half_to_float(x.data[j * x.stride + c]);
      }
      out.data[j * out.stride + i] = sum;
    }
  }
}

void half_mix(Rows<const float> shares, Rows<const uint16_t> rows, int64_t n_columns, Rows<float> out) {
  for (int64_t j = 0; j < out.n; ++j) {
    for (int64_t i = 0; i < rows.n; ++i) {
      const float share = shares.data[j * shares.stride + i];
      for (int64_t c = 0; c < n_columns; ++c) out.data[j * out.stride + c] += share * half_to_float(rows.data[i * rows.stride + c]);
    }
  }
}

Softmax half_attend(const uint16_t* query, Rows<const uint16_t> keys, Rows<const uint16_t> values, const uint16_t* mask, int64_t n_columns,
                    uint16_t* sums) {
  float largest = 0.0F;
  float total = 0.0F;
  for (int64_t i = 0; i < keys.n; ++i) {
    float score = half_to_float(mask[i]);
    for (int64_t c = 0; c < n_columns; ++c) score += half_to_float(keys.data[i * keys.stride + c]) * half_to_float(query[c]);
    const float before = i == 0 ? score : largest;
    largest = std::max(before, score);
    const float keep = std::exp(before - largest);
    const float share = std::exp(score - largest);
    const uint16_t* value = values.data + i * values.stride;
    for (int64_t c = 0; c < n_columns; ++c) sums[c] = float_to_half(keep * half_to_float(sums[c]) + share * half_to_float(value[c]));
    total = keep * total + share;
  }
  return {largest, total};
}

void multiply_halves(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                     int64_t out_stride, uint8_t* /*scratch*/) {
  const int64_t k = x.n_columns;
  half_products({reinterpret_cast<const uint16_t*>(weights), k, n_rows}, {x.halves + first * k, k, last - first}, k,
                {out + first * out_stride, out_stride, last - first});
}

void decay_rows(const StateRows& state, float decay, const float* input, const float* key, const float* query, float* out) {
  for (int64_t row = 0; row < state.n_rows; ++row) {
    out[row] = 0.0F;
    for (int64_t i = 0; i < state.n_columns; ++i) {
      const int64_t at = row * state.n_columns + i;
      state.after[at] = state.before[at] * decay + key[i] * input[row];
      out[row] += state.after[at] * query[i];
    }
  }
}

void delta_rows(const StateRows& state, float decay, const float* value, float share, const float* key, const float* query, float* room,
                float* out) {
  for (int64_t row = 0; row < state.n_rows; ++row) {
    float product = 0.0F;
    for (int64_t i = 0; i < state.n_columns; ++i) {
      const int64_t at = row * state.n_columns + i;
      state.after[at] = state.before[at] * decay;
      product += state.after[at] * key[i];
    }
    room[row] = (value[row] - product) * share;
  }
  decay_rows({state.after, state.after, state.n_rows, state.n_columns}, 1.0F, room, key, query, out);
}

uint64_t sum_words(const uint64_t* words, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += words[i];
  return sum;
}

int64_t spin_bytes(int64_t n) {
  int32_t sums[kPeakChains] = {};
  int32_t one = 1;
  for (int64_t i = 0; i < 4 * n; ++i) {
    asm volatile("" : "+r"(one));  // whose value the compiler cannot know, or it would replace the loop by its result
    for (int32_t& sum : sums) sum += one * one;
  }
  int64_t total = 0;
  for (const int32_t sum : sums) total += sum;
  return total;
}

double spin_floats(int64_t n) {
  float sums[kPeakChains] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (float& sum : sums) sum = sum * 0.5F + 1.0F;
  }
  double total = 0.0;
  for (const float sum : sums) total += static_cast<double>(sum);
  return total;
}

}  // namespace

constexpr Layout kPlain = Layout::plain;
constexpr Layout kInterleaved = Layout::interleaved;

const Kernels kScalarKernels{
    1,
    sum_words,
    spin_bytes,
    spin_floats,
    {
        {multiply_halves, nullptr},
        {multiply<BlockQ8_0, WeightType::q8_0, kPlain>, nullptr},
        {multiply<BlockQ4_0, WeightType::q4_0, kPlain>, multiply<BlockQ4_0, WeightType::q4_0, kInterleaved>},
        {multiply<BlockQ4_K, WeightType::q4_k, kPlain>, multiply<BlockQ4_K, WeightType::q4_k, kInterleaved>},
        {multiply<BlockQ6_K, WeightType::q6_k, kPlain>, nullptr},
    },
    half_products,
    exp_row,
    half_mix,
    half_attend,
    decay_rows,
    delta_rows,
};

const Kernels& kernels(CpuPath path) {
#if defined(PSHARD_X86_KERNELS)
  if (path == CpuPath::avx512) return kAvx512Kernels;
  if (path == CpuPath::avx2) return kAvx2Kernels;
#endif
  static_cast<void>(path);
  return kScalarKernels;
}

}  // namespace pshard
