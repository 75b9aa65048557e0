// Which device runs each operation of a block, and where splits begin, as llama.cpp's scheduler decides it: operations with weights run
// where their weights are (with op-offload: on the GPU, weights copied), writes into the cache run where the cache is, and whatever lies
// between follows the GPU if either neighbour runs there. Memory and time both read this. O(operations).
#pragma once

#include <cstdint>
#include <vector>

#include "model/forward.hpp"
#include "model/placement.hpp"

namespace pshard {

enum class Device : uint8_t { gpu, host };

// Where the groups of one block are. Layers take theirs from a placement; the embedding is always on the host.
struct BlockPlacement {
  LayerPlacement layer;
  Where outside = Where::cpu;  // of the groups `embedding` and `head`
  bool op_offload = false;

  bool operator==(const BlockPlacement&) const = default;
  [[nodiscard]] Where of(Group group) const { return group >= Group::embedding ? outside : layer[group]; }
};

struct ScheduledOperation {
  Device device = Device::host;
  Where lane = Where::cpu;     // the lane that brings what it needs, where that is streamed; else pinned or cpu like `device`
  bool decided = false;        // by its weight or cache; else it follows its neighbours
  bool starts_split = false;   // see `schedule`
  bool copies_weight = false;  // op-offload: the weight is in host memory and is copied for this operation
  bool copies_cache = false;   // the cache is on the other device: what is read of it is copied
};

// What a block's neighbours are: the devices of the nearest decided operations before and after it.
struct Neighbours {
  Device before = Device::host;
  Device after = Device::host;
};

// Devices of the first and the last decided operation: what the neighbouring blocks see. A block without any takes `fallback`.
struct BlockEnds {
  Device first = Device::host;
  Device last = Device::host;
};
[[nodiscard]] BlockEnds block_ends(const Block& block, const BlockPlacement& placement, Device fallback);

// One entry per operation. A split starts where the device or the lane changes and at every copied weight; the first operation starts one
// by the same rule against `neighbours.before` (a streamed block always starts one).
[[nodiscard]] std::vector<ScheduledOperation> schedule(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours);

}  // namespace pshard
