// Which device llama.cpp gives each layer: so many from the back as -ngl says, in one run per GPU, in the proportions of -ts or of the
// memory that is free.
#pragma once

#include <cstdint>
#include <vector>

#include "model/placement.hpp"

namespace pshard {

// Places of the `n_layer` layers of the file (next-token-prediction layers count) and, behind them, of the output. `n_gpu_layers` below 0:
// all. `shares` has one entry per GPU, none negative; without any, everything is on the CPU. Throws std::invalid_argument where shares are
// negative, all zero, or more than kMaxGpus. O(layers x GPUs).
[[nodiscard]] std::vector<Where> layer_places(int32_t n_layer, int32_t n_gpu_layers, const std::vector<double>& shares);

}  // namespace pshard
