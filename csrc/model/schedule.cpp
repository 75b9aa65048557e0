#include "model/schedule.hpp"

namespace pshard {

namespace {

Device device_of(Where where) { return where == Where::cpu ? Device::host : Device::gpu; }

// What the operation's own weight or cache says. Rope and fused attention ignore their small tensors, as in llama.cpp.
ScheduledOperation decide(const Operation& operation, const BlockPlacement& placement) {
  ScheduledOperation result;
  const bool writes_cache = operation.kind == OpKind::copy && operation.output == kNoValue;
  const bool weight_decides = operation.weight != nullptr && operation.weight_decides;
  if (operation.is_view || (!weight_decides && !writes_cache)) return result;
  const Where where = placement.of(operation.group);
  result.decided = true;
  result.device = device_of(where);
  result.lane = where;
  if (where == Where::cpu && operation.weight != nullptr && placement.op_offload && operation.offload_rows >= kOffloadMinTokens) {
    result.device = Device::gpu;
    result.lane = Where::pinned;
    result.copies_weight = true;
  }
  return result;
}

}  // namespace

BlockEnds block_ends(const Block& block, const BlockPlacement& placement, Device fallback) {
  BlockEnds ends{fallback, fallback};
  bool found = false;
  for (const Operation& operation : block.operations) {
    const ScheduledOperation decided = decide(operation, placement);
    if (!decided.decided) continue;
    if (!found) ends.first = decided.device;
    ends.last = decided.device;
    found = true;
  }
  return ends;
}

std::vector<ScheduledOperation> schedule(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours) {
  const size_t n = block.operations.size();
  std::vector<ScheduledOperation> result(n);
  for (size_t i = 0; i < n; ++i) result[i] = decide(block.operations[i], placement);

  Device before = neighbours.before;
  for (size_t i = 0; i < n; ++i) {
    if (result[i].decided) {
      before = result[i].device;
    } else {
      result[i].device = before;
    }
  }
  Device after = neighbours.after;
  for (size_t i = n; i-- > 0;) {
    if (result[i].decided) {
      after = result[i].device;
    } else if (after == Device::gpu) {
      result[i].device = Device::gpu;
    }
  }

  // Undecided operations run in the lane of the operation before them on the same device.
  Where lane = Where::pinned;
  for (size_t i = 0; i < n; ++i) {
    ScheduledOperation& current = result[i];
    const Operation& operation = block.operations[i];
    const Where home = placement.of(operation.group);
    if (operation.cache_bytes > 0) current.copies_cache = device_of(home) != current.device;
    if (current.device == Device::host) {
      current.lane = Where::cpu;
    } else {
      if (!current.decided) current.lane = is_streamed(home) ? home : lane;
      lane = current.lane;
      // A small weight that does not decide belongs to the attention side.
      if (operation.weight != nullptr && !operation.weight_decides) current.copies_weight = placement.of(Group::attention) == Where::cpu;
    }
    if (operation.is_view) {  // no work: it stays in the split before it
      if (i > 0) {
        current.device = result[i - 1].device;
        current.lane = lane = result[i - 1].lane;
      }
      continue;
    }
    if (i == 0) {
      current.starts_split = current.device != neighbours.before || current.copies_weight || is_streamed(current.lane);
    } else {
      current.starts_split = current.device != result[i - 1].device || current.lane != result[i - 1].lane || current.copies_weight;
    }
  }
  return result;
}

}  // namespace pshard
