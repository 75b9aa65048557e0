// The arithmetic of the CPU probes, once per instruction set. They stand for llama.cpp's: the same blocks, activations rounded to the same
// eight bits, and the same kind of kernel where llama.cpp changes kinds: dot products for one row, tiles of dot products for batches of
// F16, Q8_0 and Q4_0, and for K types, from eight rows of activations on, panels of rows that are decoded once.
#pragma once

#include <cstdint>

#include "probe/activations.hpp"
#include "probe/blocks.hpp"
#include "probe/cache_rows.hpp"
#include "probe/cpu_path.hpp"

namespace pshard {

inline constexpr int64_t kScratchBytes = int64_t{512} << 10;
inline constexpr int64_t kNearRows = 64;     // of activations that stay in the second-level cache while all rows of a call pass
inline constexpr int64_t kRowsPerCall = 64;  // a multiple of kGroupRows

// The products of n_rows rows of weights with rows [first, last) of the activations: out[j * out_stride + row]. At most kRowsPerCall rows,
// interleaved ones in whole groups. `scratch` has kScratchBytes, aligned to 64, and belongs to the calling thread.
using MultiplyRows = void (*)(const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last, float* out,
                              int64_t out_stride, uint8_t* scratch);

// By type and layout; null where there is no kernel.
struct MultiplyTable {
  MultiplyRows kernels[kWeightTypes][kLayouts] = {};

  [[nodiscard]] constexpr MultiplyRows& of(WeightType type, Layout layout = Layout::plain) {
    return kernels[static_cast<int>(type)][static_cast<int>(layout)];
  }
  [[nodiscard]] constexpr MultiplyRows of(WeightType type, Layout layout = Layout::plain) const {
    return kernels[static_cast<int>(type)][static_cast<int>(layout)];
  }
};

// Of a row of scores, the largest, and the sum of exp(score - largest).
struct Softmax {
  float largest;
  float sum;
};

// A matrix in memory; `stride` counts elements from one row to the next.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  int64_t n;
};

// row . x[j], of a row as its type stores it.
using DotRow = float (*)(const uint8_t* row, const Activations& x, int64_t j);

// By type; null where no cache has it.
struct DotTable {
  DotRow kernels[kWeightTypes] = {};

  [[nodiscard]] constexpr DotRow& of(WeightType type) { return kernels[static_cast<int>(type)]; }
  [[nodiscard]] constexpr DotRow of(WeightType type) const { return kernels[static_cast<int>(type)]; }
};

constexpr DotTable dot_table(DotRow f16, DotRow q8_0, DotRow q4_0) {
  DotTable table;
  table.of(WeightType::f16) = f16;
  table.of(WeightType::q8_0) = q8_0;
  table.of(WeightType::q4_0) = q4_0;
  return table;
}

// What one query reads: the cells of a head, each with a key, a value and a mask that is added to its score.
struct Cells {
  Rows<const uint8_t> keys, values;  // strides in bytes
  const uint16_t* mask;              // F16; a cell with minus infinity is left out
  DotRow dot;                        // with the keys
  DecodeRow decode;                  // of the values; null where they are F16
};

// Row `row` of the activations, and what becomes of its scores: softcap * tanh(scale * score) + slope * mask; uncapped where softcap is 0.
struct Query {
  const Activations& x;
  int64_t row;
  float scale, softcap, slope;
};

// Where values are summed: in F16 where they are F16, else in F32, beside room for one of them.
struct ValueSums {
  uint16_t* halves;
  float* floats;
  float* room;
};

inline constexpr int64_t kSumWords = 64;

inline constexpr int kPeakChains = 12;  // as many as hide the latency of each, and no more than there are registers

// Rows of a recurrent state, as they are and as they become; both may be the same.
struct StateRows {
  const float* before;
  float* after;
  int64_t n_rows, n_columns;
};
inline constexpr int64_t kScanColumns = 16;  // of which n_columns is a multiple

struct Kernels {
  int lanes;  // 32-bit ones of a vector
  // Sum of 64-bit words; n is a multiple of kSumWords.
  uint64_t (*sum)(const uint64_t* words, int64_t n);
  // What the units can do at most: independent multiply-adds in registers, `n` times on kPeakChains vectors. The sum tells that they were
  // done.
  int64_t (*spin_bytes)(int64_t n);  // 4 * lanes * kPeakChains * n, of bytes times bytes
  double (*spin_floats)(int64_t n);  // 2 * lanes * kPeakChains, once n is large
  MultiplyTable multiply;
  // out[j][i] = x[j] . rows[i] over n_columns, a multiple of 16.
  void (*half_products)(Rows<const uint16_t> rows, Rows<const uint16_t> x, int64_t n_columns, Rows<float> out);
  // Replaces scores, at most `largest`, by exp(score - largest) and returns their sum.
  float (*exp_row)(float* scores, int64_t n, float largest);
  // out[j] += sum over i of shares[j][i] * rows[i], n_columns as above.
  void (*half_mix)(Rows<const float> shares, Rows<const uint16_t> rows, int64_t n_columns, Rows<float> out);
  DotTable dot;
  // Attention of one query, cell by cell: adds the values, each times exp(score - largest so far), to the sums, which are zero before.
  // Values have `n_columns`, a multiple of 16.
  Softmax (*attend)(const Query& query, const Cells& cells, int64_t n_columns, const ValueSums& sums);
  // Each row becomes decay * row + input[row] * key, and out[row] = row . query.
  void (*decay_rows)(const StateRows& state, float decay, const float* input, const float* key, const float* query, float* out);
  // Each row becomes decay * row, then row + share * (value[row] - row . key) * key; out as above. `room` has n_rows.
  void (*delta_rows)(const StateRows& state, float decay, const float* value, float share, const float* key, const float* query,
                     float* room, float* out);
};

[[nodiscard]] const Kernels& kernels(CpuPath path);

// Whether there are kernels, on every path: of rows as they lie in a file, and of interleaved ones.
[[nodiscard]] bool cpu_multiplies(WeightType type);
[[nodiscard]] bool cpu_interleaves(WeightType type);

extern const Kernels kScalarKernels;
#if defined(PSHARD_X86_KERNELS)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace pshard
