// Kernels in plain C++, for CPUs that the others do not cover and to hold the others against.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "probe/kernels.hpp"
#include "probe/scalar_decode.hpp"
#include "probe/softmax_row.hpp"

namespace pshard {
namespace {

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

template <WeightType kType, Layout kLayout = Layout::plain>
void multiply(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out, int64_t out_stride,
              uint8_t* /*scratch*/) {
  const WeightFormat& shape = format_of(kType);
  const int64_t n_blocks = x.n_columns / shape.columns;
  const int64_t subs = shape.columns / shape.sub_columns;
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t j = first; j < last; ++j) out[j * out_stride + row] = 0.0F;
    for (int64_t index = 0; index < n_blocks; ++index) {
      Decoded block;
      decode(block_of<BlockOf<kType>, kLayout>(weights, n_blocks, row, index), block);
      for (int64_t j = first; j < last; ++j) {
        const int8_t* codes = x.codes + j * x.n_columns + index * shape.columns;
        float part = 0.0F;
        for (int64_t sub = 0; sub < subs; ++sub) {
          int32_t sum = 0;
          for (int64_t i = sub * shape.sub_columns; i < (sub + 1) * shape.sub_columns; ++i) sum += block.codes[i] * codes[i];
          part += block.scales[sub] * static_cast<float>(sum);
          if constexpr (kHasMins<BlockOf<kType>>) part -= block.mins[sub] * x.sums[j * x.n_sub_blocks + index * subs + sub];
        }
        out[j * out_stride + row] += part * x.scales[j * x.n_scales + index * shape.columns * x.n_scales / x.n_columns];
      }
    }
  }
}

template <WeightType kType>
float dot_blocks(const uint8_t* row, const Activations& x, int64_t j) {
  float sum = 0.0F;
  multiply<kType>(row, 1, x, j, j + 1, &sum, 0, nullptr);
  return sum;
}

template <WeightType kType>
float number(float stored) {
  return stored;
}
template <WeightType kType>
float number(uint16_t bits) {
  return kType == WeightType::f16 ? half_to_float(bits) : bfloat_to_float(bits);
}

template <WeightType kType, typename Stored>
void number_products(Rows<const Stored> rows, Rows<const Stored> x, int64_t n_columns, Rows<float> out) {
  for (int64_t i = 0; i < rows.n; ++i) {
    for (int64_t j = 0; j < x.n; ++j) {
      float sum = 0.0F;
      for (int64_t c = 0; c < n_columns; ++c)
        sum += number<kType>(rows.data[i * rows.stride + c]) * number<kType>(x.data[j * x.stride + c]);
      out.data[j * out.stride + i] = sum;
    }
  }
}

void half_products(Rows<const uint16_t> rows, Rows<const uint16_t> x, int64_t n_columns, Rows<float> out) {
  number_products<WeightType::f16>(rows, x, n_columns, out);
}

void half_mix(Rows<const float> shares, Rows<const uint16_t> rows, int64_t n_columns, Rows<float> out) {
  for (int64_t j = 0; j < out.n; ++j) {
    for (int64_t i = 0; i < rows.n; ++i) {
      const float share = shares.data[j * shares.stride + i];
      for (int64_t c = 0; c < n_columns; ++c) out.data[j * out.stride + c] += share * half_to_float(rows.data[i * rows.stride + c]);
    }
  }
}

float dot_halves(const uint8_t* row, const Activations& x, int64_t j) {
  const auto* halves = reinterpret_cast<const uint16_t*>(row);
  float sum = 0.0F;
  for (int64_t c = 0; c < x.n_columns; ++c) sum += half_to_float(halves[c]) * half_to_float(x.halves[j * x.n_columns + c]);
  return sum;
}

Softmax attend(const Query& query, const Cells& cells, int64_t n_columns, const ValueSums& sums) {
  float largest = -std::numeric_limits<float>::infinity();
  float total = 0.0F;
  for (int64_t i = 0; i < cells.keys.n; ++i) {
    const float mask = query.slope * half_to_float(cells.mask[i]);
    if (std::isinf(mask)) continue;
    float score = query.scale * cells.dot(cells.keys.data + i * cells.keys.stride, query.x, query.row);
    if (query.softcap != 0.0F) score = query.softcap * std::tanh(score);
    score += mask;
    const float before = largest;
    largest = std::max(before, score);
    const float keep = std::exp(before - largest);
    const float share = std::exp(score - largest);
    const uint8_t* value = cells.values.data + i * cells.values.stride;
    if (cells.decode == nullptr) {
      const auto* halves = reinterpret_cast<const uint16_t*>(value);
      for (int64_t c = 0; c < n_columns; ++c) {
        sums.halves[c] = float_to_half(keep * half_to_float(sums.halves[c]) + share * half_to_float(halves[c]));
      }
    } else {
      cells.decode(value, n_columns, sums.room);
      for (int64_t c = 0; c < n_columns; ++c) sums.floats[c] = keep * sums.floats[c] + share * sums.room[c];
    }
    total = keep * total + share;
  }
  return {largest, total};
}

template <WeightType kType>
void multiply_numbers(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                      int64_t out_stride, uint8_t* /*scratch*/) {
  const int64_t k = x.n_columns;
  const Rows<float> to{out + first * out_stride, out_stride, last - first};
  if constexpr (kType == WeightType::f32) {
    number_products<kType, float>({reinterpret_cast<const float*>(weights), k, n_rows}, {x.floats + first * k, k, last - first}, k, to);
  } else {
    number_products<kType, uint16_t>({reinterpret_cast<const uint16_t*>(weights), k, n_rows}, {x.halves + first * k, k, last - first}, k,
                                     to);
  }
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

template <WeightType... kTypes>
constexpr void set(MultiplyTable& table) {
  ((table.of(kTypes) = multiply<kTypes>), ...);
}

template <WeightType... kTypes>
constexpr void set_interleaved(MultiplyTable& table) {
  ((table.of(kTypes, Layout::interleaved) = multiply<kTypes, Layout::interleaved>), ...);
}

constexpr MultiplyTable table() {
  using enum WeightType;
  MultiplyTable table;
  table.of(f32) = multiply_numbers<f32>;
  table.of(f16) = multiply_numbers<f16>;
  table.of(bf16) = multiply_numbers<bf16>;
  set<q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl, mxfp4, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs>(table);
  set_interleaved<q4_0, iq4_nl, mxfp4, q4_k>(table);
  return table;
}

}  // namespace

const Kernels kScalarKernels{
    1,           sum_words,  spin_bytes,
    spin_floats, table(),    half_products,
    exp_row,     half_mix,   dot_table(dot_halves, dot_blocks<WeightType::q8_0>, dot_blocks<WeightType::q4_0>),
    attend,      decay_rows, delta_rows,
};

const Kernels& kernels(CpuPath path) {
#if defined(PSHARD_X86_KERNELS)
  if (path == CpuPath::avx512) return kAvx512Kernels;
  if (path == CpuPath::avx2) return kAvx2Kernels;
#endif
  static_cast<void>(path);
  return kScalarKernels;
}

bool cpu_multiplies(WeightType type) { return kScalarKernels.multiply.of(type) != nullptr; }
bool cpu_interleaves(WeightType type) { return kScalarKernels.multiply.of(type, Layout::interleaved) != nullptr; }

}  // namespace pshard
