// Which device runs each operation of a block, in which lane, and where splits begin, as ggml's scheduler decides it: operations with
// weights run where their weights are (with op-offload: on the first GPU, weights copied), and writes into the cache run where the cache
// is. Whatever lies between goes on with the GPU before it, else with the GPU behind it, else on the host; in a layer that streams, which
// only the pshard runtime can, it follows its operands. Memory and time both read this. O(operations).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "model/forward.hpp"
#include "model/placement.hpp"

namespace pshard {

// The host, or a GPU: number i is `gpu` + i.
enum class Device : uint8_t { host, gpu };
inline constexpr int kMaxDevices = kMaxGpus + 1;

[[nodiscard]] constexpr bool is_gpu(Device device) { return device != Device::host; }
[[nodiscard]] constexpr Device gpu_device(int gpu) { return static_cast<Device>(static_cast<int>(Device::gpu) + gpu); }
[[nodiscard]] constexpr size_t index(Device device) { return static_cast<size_t>(device); }
[[nodiscard]] constexpr uint32_t device_bit(Device device) { return 1U << index(device); }
[[nodiscard]] constexpr Device device_of(Where where) { return where == Where::cpu ? Device::host : gpu_device(gpu_of(where)); }

// Where the groups of one block are. Layers take theirs from a placement; the embedding is always on the host.
struct BlockPlacement {
  LayerPlacement layer;
  Where embedding = Where::cpu;  // of the groups outside the layers
  Where head = Where::cpu;
  bool op_offload = false;
  // llama.cpp ties the norms of a layer to the layer's device where all layers are on GPUs, and below 32 tokens, and the heads that
  // attention joins to the host where all caches are; but it forgets both where it reserves memory without allocating it.
  bool ties_norms = false;
  bool ties_heads = false;
  Where next_cache = Where::cpu;              // of the layer whose state the block loads ahead
  std::vector<TensorException> exceptions{};  // the layer's, by local names
  std::optional<Where> first_attention{};     // of the first layer, which all layers read from; none: of this one

  bool operator==(const BlockPlacement&) const = default;
  [[nodiscard]] Where of(Group group) const {
    if (group == Group::embedding) return embedding;
    return group == Group::head ? head : layer[group];
  }
  [[nodiscard]] Where of(const Operation& operation) const { return operation.is_for_next_layer ? next_cache : of(operation.group); }
  [[nodiscard]] Where cache_of(const Operation& operation) const { return operation.is_for_next_layer ? next_cache : of(Group::cache); }
  // Where the operation's weight lies.
  [[nodiscard]] Where weight_of(const Operation& operation) const;
  // The same where the weight says where the operation runs; else where its group is.
  [[nodiscard]] Where home_of(const Operation& operation) const {
    return operation.weight != nullptr && operation.weight_decides ? weight_of(operation) : of(operation.group);
  }
  [[nodiscard]] bool streams() const { return std::any_of(layer.group.begin(), layer.group.end(), is_streamed); }
};

struct ScheduledOperation {
  Device device = Device::host;
  Where lane = Where::cpu;     // the lane that brings what it needs, where that is streamed; else where `device` computes what it keeps
  bool decided = false;        // by its own block; else it follows its neighbours
  bool starts_split = false;   // see `schedule`
  bool copies_weight = false;  // op-offload: the weight is in host memory and is copied for this operation
  bool copies_cache = false;   // the cache is on the other device: what is read of it is copied
  bool split_reads = true;     // its split has read something from elsewhere, up to here
};

using InputsByDevice = std::array<InputBits, kMaxDevices>;  // by index(Device)

// What lies around a block: the lanes of the nearest decided operations before and after it.
struct Neighbours {
  Where before = Where::cpu;
  Where after = Where::cpu;
  InputsByDevice copied_inputs{};  // copies that blocks before have made of graph inputs and rope factors
  // Where the last operation before it runs, decided or not, and what layers share is. None: where `before` is.
  std::optional<Where> last_lane{};
  std::optional<Device> shared_home{};
  uint32_t shared_copies = 0;  // bits of the devices that have a copy of it
  bool split_reads = true;     // the split that the block may go on with has read something from elsewhere

  bool operator==(const Neighbours&) const = default;
};

// Lanes of the first and the last decided operation: what the neighbouring blocks see. A block without any counts as on the host.
struct BlockEnds {
  Where first = Where::cpu;
  Where last = Where::cpu;
};
[[nodiscard]] BlockEnds block_ends(const Block& block, const BlockPlacement& placement);

// One entry per operation. A split starts where the lane changes, and at every copied weight unless the split has read nothing from
// elsewhere so far; the first operation starts one by the same rule against `neighbours.last_lane`.
[[nodiscard]] std::vector<ScheduledOperation> schedule(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours);

}  // namespace pshard
