// Seconds of each part of a model on one device that has it resident: what assignments are weighed by. From the same operations, and by the
// same timeline, as the price of a whole pass.
#pragma once

#include <cstdint>
#include <vector>

#include "cost/op_cost.hpp"
#include "machine/machine.hpp"
#include "model/forward.hpp"
#include "model/model.hpp"

namespace pshard {

struct DeviceCosts {
  std::vector<Cost> layers;
  Cost head;
  Cost embedding;            // by the machine's CPU, wherever the layers are
  int64_t input_bytes = 0;   // masks, positions and the like, which every device needs once per pass
  int64_t hidden_bytes = 0;  // what goes from layer to layer
  int64_t logits_bytes = 0;
};

// On the machine's GPU or its CPU. O(distinct layers). Throws std::invalid_argument where a weight type has no rate, or there is no GPU.
[[nodiscard]] DeviceCosts device_costs(const Model& model, const Machine& machine, const Pass& pass, bool on_gpu);

}  // namespace pshard
