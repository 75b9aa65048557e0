// Replays what ggml's graph allocator does with one block, on both devices: every value from its producer to its last reader, copies at
// split boundaries from the start of the split that reads them, copied weights for their operation, reuse in place. The state that a
// block leaves to the next is small and repeats from layer to layer, which is what compute_buffers.hpp builds on.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "memory/arena.hpp"
#include "model/schedule.hpp"

namespace pshard {

using InputBits = uint32_t;  // one bit per GraphInput
[[nodiscard]] constexpr InputBits input_bit(GraphInput input) { return InputBits{1} << static_cast<unsigned>(input); }

using InputBytes = std::array<int64_t, kGraphInputCount>;  // by GraphInput; 0 where the pass has none

inline constexpr int64_t kNowhere = -1;

// Between two blocks.
struct ReplayState {
  Arena gpu{128};
  Arena host{32};
  Device residual_device = Device::host;
  int64_t residual_offset = kNowhere;
  int64_t residual_bytes = 0;
  InputBits uncast = 0;                                // masks on the GPU that are still f32
  std::vector<int64_t> streamed{};                     // offsets of what arrives for the next split, in the order of its StreamedCopies
  std::array<int64_t, kGraphInputCount> gpu_inputs{};  // offsets of the copies and of the originals; kNowhere where there is none
  std::array<int64_t, kGraphInputCount> host_inputs{};

  ReplayState() {
    gpu_inputs.fill(kNowhere);
    host_inputs.fill(kNowhere);
  }
  bool operator==(const ReplayState&) const = default;
};

// What a lane brings for a split: a weight, or the cache of its layer (K and V apart). It is there from the start of the split before.
struct StreamedCopy {
  size_t last_reader = 0;  // operation
  int64_t n_bytes = 0;
};
using StreamedCopies = std::vector<StreamedCopy>;  // of one split

// A block under a placement and its neighbours, with what follows from that alone.
struct ScheduledBlock {
  const Block* block = nullptr;
  std::vector<ScheduledOperation> operations;
  std::vector<Device> homes;     // by value
  std::vector<int32_t> bases;    // by value: what a view looks into, else the value itself
  InputBits gpu_inputs = 0;      // graph inputs that the GPU reads
  InputBits host_inputs = 0;     // and the host
  bool continues_split = false;  // the first operation goes on with the split of the block before, unless that ends in a lane
  bool one_split = false;        // no split starts inside
  bool ends_streamed = false;    // its last operation runs in a lane: the next block starts a split
  InputBits first_split_gpu_inputs = 0;
  int64_t slot_bytes = 0;                // of its cache, where that is streamed
  std::vector<StreamedCopies> streamed;  // by split
};
// `slot_bytes`: what the layer's KV or state takes in a slot.
[[nodiscard]] ScheduledBlock schedule_block(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours,
                                            int64_t slot_bytes);

// What later blocks mean for this one.
struct ReplayOutlook {
  bool continues = false;                    // the first operation goes on with the split of the block before
  InputBits ahead = 0;                       // inputs that later blocks read in the split in which this block ends: copied when it starts
  const StreamedCopies* streamed = nullptr;  // for the split behind the one in which this block ends: they arrive when that one starts
  InputBits last_gpu = 0;                    // inputs that the GPU reads here for the last time
  InputBits last_host = 0;                   // inputs that the host reads (or that are copied from it) here for the last time
  bool operator==(const ReplayOutlook&) const = default;
};

struct ReplayPeaks {
  int64_t gpu_bytes = 0;  // streamed weights and KV included
  int64_t host_bytes = 0;
};

// Changes `state` from before the block to behind it. O(operations x holes), allocates.
[[nodiscard]] ReplayPeaks replay(const ScheduledBlock& scheduled, const ReplayOutlook& outlook, const InputBytes& input_bytes,
                                 InputBits cast_inputs, ReplayState& state);

}  // namespace pshard
