#include "fleet/device_costs.hpp"

#include <array>
#include <stdexcept>
#include <utility>

#include "cost/lowering.hpp"
#include "cost/timeline.hpp"

namespace pshard {
namespace {

Cost block_cost(const Model& model, const Machine& machine, const PricedBlock& block, Where where) {
  const Device device = where == Where::cpu ? Device::host : Device::gpu;
  const BlockPlacement placement{.layer = LayerPlacement::uniform(where), .head = where, .op_offload = false, .ties_norms = false};
  Timeline timeline(machine);
  for (const Segment& segment : lower(block, model, machine, placement, Neighbours{where, where}, device).segments) timeline.add(segment);
  const PassTime time = timeline.finish();
  return {time.seconds, time.spread_seconds, time.basis};
}

int64_t output_bytes(const Block& block) {
  return block.residual_out == kNoValue ? 0 : block.values[static_cast<size_t>(block.residual_out)].n_bytes;
}

}  // namespace

DeviceCosts device_costs(const Model& model, const Machine& machine, const Pass& pass, bool on_gpu) {
  if (on_gpu && !machine.has_gpu) throw std::invalid_argument("machine '" + machine.name + "' has no GPU whose layers could be priced");
  const Where where = on_gpu ? Where::pinned : Where::cpu;
  const auto& layers = model.layers();
  DeviceCosts costs;
  std::array<int64_t, kGraphInputCount> input_bytes{};
  std::vector<std::pair<std::pair<int32_t, bool>, Cost>> known;  // by layer class, and whether it is the last layer
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::pair<int32_t, bool> variant{layers[i].layer_class, i + 1 == layers.size()};
    auto found = known.begin();
    while (found != known.end() && found->first != variant) ++found;
    if (found == known.end()) {
      const PricedBlock block = price_block(model, machine, pass, layer_block(model, layers[i], pass, variant.second));
      for (const Value& value : block.block.values) {
        if (value.is_input) input_bytes[static_cast<size_t>(value.input)] = value.n_bytes;
      }
      found = known.insert(found, {variant, block_cost(model, machine, block, where)});
      if (i == 0) costs.hidden_bytes = output_bytes(block.block);
    }
    costs.layers.push_back(found->second);
  }
  const PricedBlock head = price_block(model, machine, pass, head_block(model, pass));
  costs.head = block_cost(model, machine, head, where);
  costs.logits_bytes = output_bytes(head.block);
  costs.embedding = block_cost(model, machine, price_block(model, machine, pass, embedding_block(model, pass)), Where::cpu);
  for (const int64_t n_bytes : input_bytes) costs.input_bytes += n_bytes;
  return costs;
}

}  // namespace pshard
