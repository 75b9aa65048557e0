// What changing from one tier's placement to another costs before the next pass can start.
#pragma once

#include <cstdint>
#include <vector>

#include "machine/machine.hpp"
#include "model/model.hpp"
#include "model/placement.hpp"

namespace pshard {

struct SwitchCost {
  int64_t up_bytes = 0;    // weights and KV that become resident
  int64_t down_bytes = 0;  // KV that loses its place; weights are dropped, their home is host memory
  double seconds = 0.0;
};

// `cache_bytes_per_layer` is the used part of each layer's KV or state. Copies run one after the other in page-locked chunks.
[[nodiscard]] SwitchCost switch_cost(const Model& model, const Machine& machine, const Placement& from, const Placement& to,
                                     const std::vector<int64_t>& cache_bytes_per_layer);

}  // namespace pshard
