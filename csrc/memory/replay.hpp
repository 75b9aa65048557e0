// Replays what ggml's graph allocator does with one block, on every device: every value from its producer to its last reader, copies at
// split boundaries from the start of the split that reads them, copied weights for their operation, reuse in place. The state that a
// block leaves to the next is small and repeats from layer to layer, which is what compute_buffers.hpp builds on.
//
// A place is where a copy can lie: the host, a GPU, or a lane of the first one, which keeps copies of the graph inputs of its own. Where
// names it.
//
// llama.cpp's pipeline over several GPUs works on four micro-batches at a time: whatever a split reads from another device, and every graph
// input, then exists four times for the whole pass.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "memory/arena.hpp"
#include "model/schedule.hpp"

namespace pshard {

using InputBytes = std::array<int64_t, kGraphInputCount>;  // by GraphInput; 0 where the pass has none
template <typename T>
using PerDevice = std::array<T, kMaxDevices>;  // by index(Device)

// The place of what is resident on a device.
[[nodiscard]] constexpr Where place_on(Device device) {
  return is_gpu(device) ? pinned_on(static_cast<int>(index(device) - index(Device::gpu))) : Where::cpu;
}
template <typename T>
class PerPlace {
 public:
  T& operator[](Where place) { return values_[static_cast<size_t>(place)]; }
  const T& operator[](Where place) const { return values_[static_cast<size_t>(place)]; }
  bool operator==(const PerPlace&) const = default;

 private:
  std::array<T, static_cast<size_t>(pinned_on(kMaxGpus - 1)) + 1> values_{};
};

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
  Where state_home = Where::cpu;  // of a recurrent state that was loaded ahead
  int64_t state_offset = kNowhere;
  int64_t state_bytes = 0;
  Arrivals here{};  // for the split that runs
  Arrivals next{};  // and for the one behind it

  explicit ReplayState(int n_gpu);
  [[nodiscard]] Arena& arena(Where place) { return arenas[index(device_of(place))]; }
  [[nodiscard]] InputOffsets& inputs_in(Where place) { return inputs[static_cast<size_t>(place)]; }
  bool operator==(const ReplayState&) const = default;
};

// What a lane brings for a split: it is there from the start of the split before.
struct StreamedCopies {
  struct Weight {
    size_t reader = 0;  // operation
    int64_t n_bytes = 0;
    bool operator==(const Weight&) const = default;
  };
  std::vector<Weight> weights{};
  std::vector<int64_t> cache_bytes{};

  [[nodiscard]] bool empty() const { return weights.empty() && cache_bytes.empty(); }
  [[nodiscard]] int64_t n_bytes() const;
  bool operator==(const StreamedCopies&) const = default;
};

// A block under a placement and its neighbours, with what follows from that alone.
struct ScheduledBlock {
  const Block* block = nullptr;
  std::vector<ScheduledOperation> operations;
  std::vector<Where> homes;              // by value: the host or a GPU
  std::vector<int32_t> bases;            // by value: what a view looks into, else the value itself
  PerPlace<InputBits> inputs{};          // graph inputs that are read in each place
  InputList first_split_inputs{};        // those of the first split
  bool first_split_reads_state = false;  // the one that a block before has loaded
  InputBits cast_inputs = 0;             // masks that their first reader on the GPU casts from f32 to f16, for all lanes
  bool may_continue = false;             // the first operation needs no split of its own in the lane of the one before
  InputBits copied_inputs = 0;           // graph inputs that are read anywhere but on the host
  std::vector<StreamedCopies> streamed;  // by split, at least one
  std::vector<int64_t> stream_bytes;     // of these
  std::vector<int64_t> live_bytes;       // by split: the most that is alive at once on the first GPU, what streams for it included
  std::vector<FusedRun> fused;           // those that nothing interrupts, by the operation that they live until
  Where first_lane = Where::cpu;         // of its first operation; an encoder's head has none
  Where last_lane = Where::cpu;
};
// `cache_bytes`: of each tensor of the layer's KV or state. `cast_inputs`: see above.
[[nodiscard]] ScheduledBlock schedule_block(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours,
                                            const std::vector<int64_t>& cache_bytes, InputBits cast_inputs);

// What later blocks mean for this one.
struct ReplayOutlook {
  bool continues = false;                  // the first operation goes on with the split of the block before
  bool pipeline = false;                   // copies are made four times and stay
  InputList ahead{};                       // inputs that later blocks read in the split in which this block ends: copied when it starts
  bool takes_state = false;                // and so is the state that this block loads or passes on
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
