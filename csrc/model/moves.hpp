// What has to cross between devices so that every operation of a block runs where the schedule puts it: values, weights and cache. Time
// prices these moves, the executor makes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/forward.hpp"
#include "model/schedule.hpp"

namespace pshard {

// `streamed`: copied ahead, into the slot of the operation's lane. `offloaded`: copied when the operation is about to run.
enum class WeightMove : uint8_t { none, streamed, offloaded };

// `up` before the split and `down` behind it, or both, of a layer that streams; `fetched`: attention runs on another device than the cache,
// which copies what it reads.
enum class CacheMove : uint8_t { none, up, down, up_and_down, fetched };

// Of one operation whose weight, or whose group, has its home at `home`. What attention reads comes up, what was written goes down,
// recurrent state travels both ways.
[[nodiscard]] WeightMove weight_move(const Operation& operation, const ScheduledOperation& scheduled, Where home);
[[nodiscard]] CacheMove cache_move(const Operation& operation, const ScheduledOperation& scheduled, Where home);

struct ValueMove {
  Device from = Device::host;
  Device to = Device::host;
  int64_t n_bytes = 0;
};

struct PlacedOperation {
  size_t index = 0;  // in the block
  Device device = Device::host;
  Where lane = Where::cpu;
  WeightMove weight = WeightMove::none;
  CacheMove cache = CacheMove::none;
  std::vector<ValueMove> values;  // that it reads and its device does not hold yet
};

struct PlacedBlock {
  std::vector<PlacedOperation> operations;  // without views
  Device residual = Device::host;           // where the block leaves its result
};

// `residual` says where the block's input is; graph inputs are taken to be everywhere.
[[nodiscard]] PlacedBlock place(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours, Device residual);

}  // namespace pshard
