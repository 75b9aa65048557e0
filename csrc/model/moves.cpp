#include "model/moves.hpp"

#include <bit>

namespace pshard {
namespace {

using DeviceBits = uint16_t;
constexpr DeviceBits kEverywhere = 0xffff;

constexpr DeviceBits bit(Device device) { return static_cast<DeviceBits>(1U << index(device)); }

// The host where it is among them, else the first.
Device first_of(DeviceBits devices) { return static_cast<Device>(std::countr_zero(devices)); }

// Which devices hold each value of a block by now; 0 before it is computed.
class Whereabouts {
 public:
  Whereabouts(const Block& block, Device residual) : held_by_(block.values.size(), 0) {
    for (size_t i = 0; i < block.values.size(); ++i) {
      if (block.values[i].is_input) held_by_[i] = kEverywhere;
    }
    if (block.residual_in != kNoValue) at(block.residual_in) = bit(residual);
  }
  DeviceBits& at(int32_t value) { return held_by_[static_cast<size_t>(value)]; }
  [[nodiscard]] bool must_move(int32_t value, Device to) { return is_value(value) && at(value) != 0 && (at(value) & bit(to)) == 0; }
  [[nodiscard]] Device device_of(int32_t value, Device otherwise) { return value == kNoValue ? otherwise : first_of(at(value)); }

 private:
  std::vector<DeviceBits> held_by_;
};

}  // namespace

WeightMove weight_move(const Operation& operation, const ScheduledOperation& scheduled, Where home) {
  if (!is_gpu(scheduled.device) || operation.weight == nullptr || operation.kind == OpKind::get_rows) return WeightMove::none;
  if (scheduled.copies_weight) return WeightMove::offloaded;
  return is_streamed(home) ? WeightMove::streamed : WeightMove::none;
}

CacheMove cache_move(const Operation& operation, const ScheduledOperation& scheduled, Where home) {
  if (operation.cache_bytes <= 0) return CacheMove::none;
  if (scheduled.copies_cache) return CacheMove::fetched;
  if (!is_gpu(scheduled.device) || !is_streamed(home)) return CacheMove::none;
  if (operation.kind == OpKind::copy) return CacheMove::down;
  return operation.kind == OpKind::scan ? CacheMove::up_and_down : CacheMove::up;
}

PlacedBlock place(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours, Device residual) {
  PlacedBlock placed;
  const std::vector<ScheduledOperation> scheduled = schedule(block, placement, neighbours);
  Whereabouts whereabouts(block, residual);
  for (size_t i = 0; i < block.operations.size(); ++i) {
    const Operation& operation = block.operations[i];
    if (operation.is_view) {
      if (is_value(operation.output) && is_value(operation.inputs[0]))
        whereabouts.at(operation.output) = whereabouts.at(operation.inputs[0]);
      continue;
    }
    PlacedOperation current;
    current.index = i;
    current.device = scheduled[i].device;
    current.lane = scheduled[i].lane;
    current.weight = weight_move(operation, scheduled[i], placement.home_of(operation));
    current.cache = cache_move(operation, scheduled[i], placement.of(operation.group));
    for (const int32_t input : operation.inputs) {
      if (!whereabouts.must_move(input, current.device)) continue;
      const int64_t n_bytes = block.values[static_cast<size_t>(input)].n_bytes;
      current.values.push_back({first_of(whereabouts.at(input)), current.device, n_bytes});
      whereabouts.at(input) |= bit(current.device);
    }
    if (operation.output != kNoValue) whereabouts.at(operation.output) = bit(current.device);
    placed.operations.push_back(std::move(current));
  }
  placed.residual = whereabouts.device_of(block.residual_out, residual);
  return placed;
}

}  // namespace pshard
