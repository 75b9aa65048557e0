#include "probe/activations.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace pshard {
namespace {

constexpr float kLargest = 127.0F;
constexpr int64_t kBlock = 32, kBlockOfK = 256;

// Columns that share a scale; 0: there are no scales.
int64_t block_of(Rounding rounding) { return rounding == Rounding::by_32 ? kBlock : rounding == Rounding::by_256 ? kBlockOfK : 0; }

// Sizes are multiples of a cache line, so that the arrays of one buffer are aligned like it.
int64_t padded(int64_t n_bytes) { return (n_bytes + 63) / 64 * 64; }

// Adding 1.5 * 2^23 leaves the nearest whole number, ties to even, in the low bits; compilers turn it into vector code on any CPU.
int32_t nearest(float value) { return std::bit_cast<int32_t>(value + 12582912.0F) - std::bit_cast<int32_t>(12582912.0F); }

constexpr int64_t kLanes = 16;  // of which compilers make vectors; a single maximum they must take in order

template <int64_t kColumns>
float largest_in_lanes(const float* values) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < kColumns; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], std::abs(values[i + lane]));
  }
  return *std::max_element(lanes, lanes + kLanes);
}

template <int64_t kColumns>
float largest_in_order(const float* values) {
  float largest = 0.0F;
  for (int64_t i = 0; i < kColumns; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
}

// Returns the scale.
template <int64_t kColumns>
float round_block(const float* from, int8_t* to, float largest) {
  const float inverse = largest > 0.0F ? kLargest / largest : 0.0F;
  if (!std::isfinite(inverse)) {  // below what can be inverted: zero
    std::fill_n(to, kColumns, int8_t{0});
    return 0.0F;
  }
  for (int64_t i = 0; i < kColumns; ++i) to[i] = static_cast<int8_t>(nearest(from[i] * inverse));
  return largest / kLargest;
}

template <int64_t kColumns>
int32_t sum_of(const int8_t* codes) {
  int32_t sum = 0;
  for (int64_t i = 0; i < kColumns; ++i) sum += codes[i];
  return sum;
}

}  // namespace

Activations::Activations(WeightType type_of_weights, int64_t rows, int64_t columns, Layout layout)
    : type(type_of_weights), n_rows(rows), n_columns(columns) {
  const WeightFormat& format = format_of(type);
  in_lanes_ = layout == Layout::interleaved;
  const int64_t block = block_of(format.rounding);
  n_scales = block == 0 ? 0 : n_columns / block;
  n_sub_blocks = block == 0 ? 0 : n_columns / format.sub_columns;
  const bool is_float = format.rounding == Rounding::none;
  const bool is_half = format.rounding == Rounding::half || format.rounding == Rounding::bfloat;
  const int64_t code_bytes = padded(n_rows * n_columns * (is_float ? 4 : is_half ? 2 : 1));
  const int64_t scale_bytes = padded(n_rows * n_scales * 4);
  const int64_t sum_bytes = padded(n_rows * n_sub_blocks * 4);
  storage_ = Buffer(code_bytes + scale_bytes + 2 * sum_bytes);
  codes = is_half || is_float ? nullptr : storage_.as<int8_t>();
  halves = is_half ? storage_.as<uint16_t>() : nullptr;
  floats = is_float ? storage_.as<float>() : nullptr;
  scales = reinterpret_cast<float*>(storage_.data() + code_bytes);
  sums = reinterpret_cast<float*>(storage_.data() + code_bytes + scale_bytes);
  starts = reinterpret_cast<int32_t*>(storage_.data() + code_bytes + scale_bytes + sum_bytes);
}

void Activations::quantise(int64_t row, const float* values) {
  const WeightFormat& format = format_of(type);
  if (floats != nullptr) {
    std::copy_n(values, n_columns, floats + row * n_columns);
    return;
  }
  if (halves != nullptr) {
    const auto rounded = format.rounding == Rounding::half ? float_to_half : float_to_bfloat;
    std::transform(values, values + n_columns, halves + row * n_columns, rounded);
    return;
  }
  const int64_t columns = block_of(format.rounding);
  for (int64_t block = 0; block < n_scales; ++block) {
    const float* from = values + block * columns;
    int8_t* to = codes + row * n_columns + block * columns;
    float& scale = scales[row * n_scales + block];
    if (columns == kBlock) {
      scale = round_block<kBlock>(from, to, largest_in_lanes<kBlock>(from));
    } else {
      scale = round_block<kBlockOfK>(from, to, in_lanes_ ? largest_in_lanes<kBlockOfK>(from) : largest_in_order<kBlockOfK>(from));
    }
  }
  for (int64_t sub = 0; sub < n_sub_blocks; ++sub) {
    const int8_t* from = codes + row * n_columns + sub * format.sub_columns;
    const int32_t sum = format.sub_columns == kBlock ? sum_of<kBlock>(from) : sum_of<kBlock / 2>(from);
    sums[row * n_sub_blocks + sub] = static_cast<float>(sum);
    starts[row * n_sub_blocks + sub] = -format.offset * sum;
  }
}

void Activations::take_row(int64_t row, const Activations& other, int64_t other_row) {
  if (floats != nullptr) {
    std::copy_n(other.floats + other_row * n_columns, n_columns, floats + row * n_columns);
    return;
  }
  if (halves != nullptr) {
    std::copy_n(other.halves + other_row * n_columns, n_columns, halves + row * n_columns);
    return;
  }
  std::copy_n(other.codes + other_row * n_columns, n_columns, codes + row * n_columns);
  std::copy_n(other.scales + other_row * n_scales, n_scales, scales + row * n_scales);
  std::copy_n(other.sums + other_row * n_sub_blocks, n_sub_blocks, sums + row * n_sub_blocks);
  std::copy_n(other.starts + other_row * n_sub_blocks, n_sub_blocks, starts + row * n_sub_blocks);
}

double Activations::value(int64_t row, int64_t column) const {
  const int64_t at = row * n_columns + column;
  const Rounding rounding = format_of(type).rounding;
  if (floats != nullptr) return floats[at];
  if (halves != nullptr) return rounding == Rounding::half ? half_to_float(halves[at]) : bfloat_to_float(halves[at]);
  const int64_t block = column / block_of(rounding);
  return static_cast<double>(scales[row * n_scales + block]) * codes[at];
}

}  // namespace pshard
