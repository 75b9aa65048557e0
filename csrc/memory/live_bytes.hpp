// What is alive on the first GPU at once: the least that any allocator takes there. It needs no state from the blocks before, so a search
// rules placements out by it without a replay.
#pragma once

#include <cstdint>
#include <vector>

#include "model/schedule.hpp"

namespace pshard {

// For each operation that runs on the first GPU, bytes of the values that it or a later one of the block reads or writes there, and of the
// weight that is copied for it; 0 for the others. A result counts as taking the place of an operand wherever it may, and a view of what
// lies outside the block as no more than itself. O(operations).
[[nodiscard]] std::vector<int64_t> live_gpu_bytes(const Block& block, const std::vector<ScheduledOperation>& operations);

}  // namespace pshard
