// A block under a placement and its neighbours, as far as that decides what the allocator does with it: where every value lies, and what
// each split reads that lies elsewhere.
//
// A place is where a copy can lie: the host, a GPU, or a lane of the first one, which keeps copies of the graph inputs of its own. Where
// names it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "model/schedule.hpp"

namespace pshard {

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

// What a split that goes on beyond its block will read from elsewhere, as far as that is no graph input: of what the blocks pass on beside
// the residual a part, of which every reader has a copy, or the whole, of which there is one for all readers in a place; a part of a cache
// that several layers read; or a view of a graph input, which like any view is copied for its reader.
struct CopyAhead {
  int32_t n_inputs_before = 0;  // graph inputs of the list that are read before it
  int64_t n_bytes = 0;
  std::optional<Beside> of{};
  bool is_whole = false;
  GraphInput viewed = GraphInput::none;
  bool operator==(const CopyAhead&) const = default;
};

// In the order in which a split reads them first.
struct ReadsAhead {
  InputList inputs{};
  std::vector<CopyAhead> copies{};

  void add(CopyAhead copy) {
    copy.n_inputs_before = inputs.size();
    copies.push_back(copy);
  }
  void append(const ReadsAhead& behind);
  [[nodiscard]] bool reads_part(Beside of) const {
    return std::any_of(copies.begin(), copies.end(), [&](const CopyAhead& copy) { return copy.of == of && !copy.is_whole; });
  }
  [[nodiscard]] bool reads_whole() const {
    return std::any_of(copies.begin(), copies.end(), [](const CopyAhead& copy) { return copy.is_whole; });
  }
  [[nodiscard]] InputBits bits() const { return inputs.bits(); }
  [[nodiscard]] InputBits viewed() const {
    InputBits bits = 0;
    for (const CopyAhead& copy : copies) bits |= copy.viewed != GraphInput::none ? input_bit(copy.viewed) : 0;
    return bits;
  }
  bool operator==(const ReadsAhead&) const = default;
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
  std::vector<Where> homes;                      // by value: the host or a GPU
  std::vector<int32_t> bases;                    // by value: what a view looks into, else the value itself
  PerPlace<InputBits> inputs{};                  // graph inputs that are read in each place
  ReadsAhead first_split{};                      // what the first split reads; of what is handed on as if it were elsewhere
  InputBits viewed_later = 0;                    // of which views are copied behind the first split
  uint32_t whole_reads = 0;                      // one bit per place: where all of what is shared is read at once
  std::array<bool, kHandedCount> reads_later{};  // of that, behind the first split
  InputBits cast_inputs = 0;                     // masks that their first reader on the GPU casts from f32 to f16, for all lanes
  bool may_continue = false;                     // the first operation needs no split of its own in the lane of the one before
  bool split_reads = true;                       // the last split has read something from elsewhere
  InputsByDevice copied_inputs{};                // graph inputs and rope factors that are read where they are not
  std::vector<StreamedCopies> streamed;          // by split, at least one
  std::vector<int64_t> stream_bytes;             // of these
  std::vector<int64_t> live_bytes;               // by split: the most that is alive at once on the first GPU, what streams for it included
  std::vector<FusedRun> fused;                   // those that nothing interrupts, by the operation that they live until
  Where first_lane = Where::cpu;                 // of its first operation; an encoder's head has none
  Where last_lane = Where::cpu;

  // Tells the block behind where it finds what layers share.
  void hand_on_shared(Neighbours& neighbours) const;
};
// `cache_bytes`: of each tensor of the layer's KV or state. `cast_inputs`: see above.
[[nodiscard]] ScheduledBlock schedule_block(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours,
                                            const std::vector<int64_t>& cache_bytes, InputBits cast_inputs);

// The graph input into which the value is a view, `none` where it is no such.
[[nodiscard]] GraphInput viewed_input(const ScheduledBlock& scheduled, int32_t value);
// What is handed on of which the value is a part.
[[nodiscard]] std::optional<Beside> part_of_handed(const ScheduledBlock& scheduled, int32_t value);
[[nodiscard]] size_t end_of_split(const ScheduledBlock& scheduled, size_t first);
// Rope factors on another device than the rope.
[[nodiscard]] bool copies_rope_factors(const ScheduledBlock& scheduled, size_t i);
// The weight is copied for this operation, and for those behind it in the same place.
[[nodiscard]] bool copies_weight_first(const ScheduledBlock& scheduled, size_t i);
[[nodiscard]] int64_t weight_copy_bytes(const ScheduledBlock& scheduled, size_t i);
[[nodiscard]] int64_t cache_copy_bytes(const ScheduledBlock& scheduled, size_t i, int32_t operand);
[[nodiscard]] Where fused_in(const ScheduledBlock& scheduled, const FusedRun& run);
// Where an operation has its copy of a graph input.
[[nodiscard]] Where place_of(GraphInput input, Where lane, InputBits cast_inputs);
[[nodiscard]] constexpr uint32_t place_bit(Where place) { return 1U << static_cast<unsigned>(place); }

}  // namespace pshard
