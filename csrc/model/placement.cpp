#include "model/placement.hpp"

#include <stdexcept>

namespace pshard {

void check(const Placement& placement, size_t n_layer) {
  if (placement.layer_pattern.size() != n_layer) {
    throw std::invalid_argument("the placement has " + std::to_string(placement.layer_pattern.size()) + " layers, the model " +
                                std::to_string(n_layer) + "; give one layer_pattern entry for each layer of the model");
  }
  for (size_t i = 0; i < n_layer; ++i) {
    if (placement.layer_pattern[i] < placement.patterns.size()) continue;
    throw std::invalid_argument("layer_pattern[" + std::to_string(i) + "] is " + std::to_string(placement.layer_pattern[i]) +
                                ", but the placement has " + std::to_string(placement.patterns.size()) +
                                " patterns; count them from 0, or add the pattern");
  }
}

}  // namespace pshard
