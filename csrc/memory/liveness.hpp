// Bytes of intermediate results that are alive at once in one block, per device: every value from its producer to its last reader, copies
// at split boundaries from the start of the split that reads them, copied weights for their operation, streamed weights from the split
// before until their split ends. Reuse in place as ggml does it. What the allocator loses to fragmentation is not in it.
#pragma once

#include <array>
#include <cstdint>

#include "model/schedule.hpp"

namespace pshard {

struct BlockSurroundings {
  Neighbours neighbours;
  Device residual = Device::host;  // where the residual comes from
};

struct BlockBuffers {
  int64_t gpu_bytes = 0;           // peak, without graph inputs
  int64_t gpu_last_split_bytes = 0;  // peak within the last split of the block: a streamed block behind adds its first weights to it
  int64_t host_bytes = 0;          // peak, without graph inputs
  int64_t stream_bytes = 0;        // peak of streamed weights and KV alone
  int64_t first_stream_bytes = 0;  // streamed for the first split
  int64_t last_stream_bytes = 0;   // streamed for the last split
  uint32_t gpu_inputs = 0;         // graph inputs that the GPU reads: bit per GraphInput
  uint32_t host_inputs = 0;        // and those that the host reads
  Device residual = Device::host;  // where the block leaves its result
};

// Bytes of the graph inputs that a block names, by GraphInput; 0 where it does not.
using InputBytes = std::array<int64_t, kGraphInputCount>;
void collect_inputs(const Block& block, InputBytes& bytes);

// `slot_bytes`: what the slot of the layer's KV or state takes where it is streamed. O(operations), allocates.
[[nodiscard]] BlockBuffers block_buffers(const Block& block, const BlockPlacement& placement, const BlockSurroundings& surroundings,
                                         int64_t slot_bytes);

}  // namespace pshard
