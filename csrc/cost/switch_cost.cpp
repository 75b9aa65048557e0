#include "cost/switch_cost.hpp"

#include <stdexcept>

namespace pshard {

SwitchCost switch_cost(const Model& model, const Machine& machine, const Placement& from, const Placement& to,
                       const std::vector<int64_t>& cache_bytes_per_layer) {
  const auto& layers = model.layers();
  check(from, layers.size());
  check(to, layers.size());
  if (cache_bytes_per_layer.size() != layers.size()) {
    throw std::invalid_argument("a switch needs the cache bytes of each of the model's " + std::to_string(layers.size()) +
                                " layers, not of " + std::to_string(cache_bytes_per_layer.size()));
  }
  SwitchCost cost;
  const auto becomes_resident = [](Where before, Where after) { return before != Where::pinned && after == Where::pinned; };
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerPlacement& before = from.layer(i);
    const LayerPlacement& after = to.layer(i);
    for (const Tensor& tensor : layers[i].tensors) {
      const Group group = group_of(tensor.name);
      if (becomes_resident(before[group], after[group])) cost.up_bytes += tensor.n_bytes;
    }
    if (becomes_resident(before[Group::cache], after[Group::cache])) cost.up_bytes += cache_bytes_per_layer[i];
    if (becomes_resident(after[Group::cache], before[Group::cache])) cost.down_bytes += cache_bytes_per_layer[i];
  }
  if (becomes_resident(from.head, to.head)) {
    for (const Tensor& tensor : model.head()) cost.up_bytes += tensor.n_bytes;
  }
  const double largest_chunk = machine.up.chunk_bytes.empty() ? 1.0 : machine.up.chunk_bytes.back();
  cost.seconds = machine.up.seconds(static_cast<double>(cost.up_bytes), largest_chunk) +
                 machine.down.seconds(static_cast<double>(cost.down_bytes), largest_chunk);
  return cost;
}

}  // namespace pshard
