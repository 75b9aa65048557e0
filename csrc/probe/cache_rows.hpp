// Rows of a quantised cache as numbers. Not among the kernels of an instruction set, and in plain code: llama.cpp decodes values for
// attention outside of its CPU backend, where its build knows no instruction set either.
#pragma once

#include <cstdint>

#include "probe/blocks.hpp"

namespace pshard {

using DecodeRow = void (*)(const uint8_t* row, int64_t n_columns, float* out);

// Null for types that no cache has here, and for F16, which kernels read as it is.
[[nodiscard]] DecodeRow decode_row(WeightType type);

}  // namespace pshard
