// Replays what ggml's graph allocator does with one block, on every device: every value from its producer to its last reader, copies at
// split boundaries from the start of the split that reads them, copied weights for their operation, reuse in place. The state that a
// block leaves to the next is small and repeats from layer to layer, which is what compute_buffers.hpp builds on.
//
// llama.cpp's pipeline over several GPUs works on four micro-batches at a time: whatever a split reads from another device, and every graph
// input, then exists four times for the whole pass.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "memory/arena.hpp"
#include "memory/scheduled_block.hpp"

namespace pshard {

using InputBytes = std::array<int64_t, kGraphInputCount>;  // by GraphInput; 0 where the pass has none
template <typename T>
using PerDevice = std::array<T, kMaxDevices>;  // by index(Device)

inline constexpr int64_t kNowhere = -1;
inline constexpr int64_t kPipelineCopies = 4;

// What the lanes brought for one split.
struct Arrivals {
  struct Slot {
    int64_t offset = 0;
    int64_t n_bytes = 0;
    bool operator==(const Slot&) const = default;
  };
  std::vector<int64_t> weights{};  // offsets, in the order of their readers; a block takes its own
  std::vector<Slot> caches{};      // KV or state: they stay to the end of the split

  void clear() {
    weights.clear();
    caches.clear();
  }
  bool operator==(const Arrivals&) const = default;
};

// Between two blocks.
struct ReplayState {
  using InputOffsets = std::array<int64_t, kGraphInputCount>;

  std::vector<Arena> arenas;         // by index(Device)
  std::vector<InputOffsets> inputs;  // by place: of the originals on the host, of the copies elsewhere; kNowhere: none
  InputBits uncast = 0;              // masks on the GPU that are still f32
  Where residual_home = Where::cpu;  // or pinned
  int64_t residual_offset = kNowhere;
  int64_t residual_bytes = 0;
  // Of what is handed on beside it.
  struct HandedOn {
    Where home = Where::cpu;
    int64_t offset = kNowhere;
    int64_t n_bytes = 0;
    bool operator==(const HandedOn&) const = default;
  };
  std::array<HandedOn, kHandedCount> handed{};  // by Beside
  std::vector<int64_t> shared_copies;           // by place: of the whole of what is shared, which later blocks read there
  std::vector<int64_t> rooms{};                 // offsets of those that later blocks read first, in their order
  std::vector<int64_t> ahead{};                 // offsets of what was copied when the split began and is not read yet
  Arrivals here{};                              // for the split that runs
  Arrivals next{};                              // and for the one behind it

  explicit ReplayState(int n_gpu);
  [[nodiscard]] Arena& arena(Where place) { return arenas[index(device_of(place))]; }
  [[nodiscard]] InputOffsets& inputs_in(Where place) { return inputs[static_cast<size_t>(place)]; }
  bool operator==(const ReplayState&) const = default;
};

// What later blocks mean for this one.
struct ReplayOutlook {
  bool continues = false;                  // the first operation goes on with the split of the block before
  bool pipeline = false;                   // copies are made four times and stay
  ReadsAhead ahead{};                      // what later blocks read in the split in which this block ends: copied when it starts
  uint32_t whole_reads = 0;                // by later blocks
  std::array<bool, kHandedCount> ends{};   // and then nobody reads the original of what is handed on
  bool drops_shared = false;               // later blocks read no more of what is shared than the copies that there are
  const StreamedCopies* last = nullptr;    // for the split in which this block ends, later blocks included
  const StreamedCopies* behind = nullptr;  // for the split behind that one
  PerPlace<InputBits> last_reads{};        // inputs that are read in a place here for the last time; the host's also by being copied
  bool operator==(const ReplayOutlook&) const = default;
};

struct DevicePeak {
  int64_t bytes = 0;  // streamed weights and KV included
  int64_t kept = 0;   // of copies that stay, beside `bytes`
};
using ReplayPeaks = PerDevice<DevicePeak>;

// Changes `state` from before the block to behind it. O(operations x holes), allocates.
[[nodiscard]] ReplayPeaks replay(const ScheduledBlock& scheduled, const ReplayOutlook& outlook, const InputBytes& input_bytes,
                                 ReplayState& state);

}  // namespace pshard
