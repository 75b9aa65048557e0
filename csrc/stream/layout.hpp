// Where everything of a schedule lies in the arena of each GPU: resident weights and caches, the slots of the lanes, and a room that
// operations work in, one after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "stream/backend.hpp"
#include "stream/schedule.hpp"

namespace pshard {

inline constexpr int64_t kNowhere = -1;

struct DeviceLayout {
  std::vector<int64_t> tensors;  // by Schedule::tensors: offset in the arena, or kNowhere
  std::vector<int64_t> caches;   // by layer
  int64_t room = 0;
  int64_t room_bytes = 0;
  int64_t scratch = 0;
  int64_t slots[2] = {0, 0};
  int64_t n_bytes = 0;  // of all of it
};

// What works in a device's room at one moment: activations, or what is written into a cache; a result; what was copied for the operation.
// Activations lie at the start of the room, the result at its end, what was copied before the result.
struct RoomUse {
  int64_t x = 0;
  int64_t y = 0;
  int64_t fetched = 0;

  // From the end of the room, aligned.
  [[nodiscard]] int64_t y_before_end() const;
  [[nodiscard]] int64_t fetched_before_end() const;
};
[[nodiscard]] RoomUse room_use(const Schedule& schedule, const Split& split, const StreamOperation& work);

// `most` of each over a pass, and what it takes at least: operations may write over activations that a later one reads again.
struct RoomSizes {
  RoomUse most;
  int64_t least = 0;
};
[[nodiscard]] RoomSizes room_sizes(const Schedule& schedule, Device device);

// Where what a split copies ahead lies, from the start of its slot, in the order of the split's lists.
struct SplitLayout {
  std::vector<int64_t> streamed, streamed_experts, cache_up;
  int64_t slot_bytes = 0;
};
[[nodiscard]] SplitLayout split_layout(const Schedule& schedule, const Split& split);

// Bytes that may be used of each GPU's arena, indexed [schedule][GPU].
using ArenaLimits = std::vector<std::vector<int64_t>>;

// One layout for each schedule and GPU: what several schedules keep resident has one place in all of them, so that changing between them
// moves only the rest. Within its limit a room is as large as is of use. Indexed [schedule][Device].
[[nodiscard]] std::vector<std::vector<DeviceLayout>> lay_out(const std::vector<Schedule>& schedules, const ArenaLimits& limits,
                                                             const Backend& backend);

// What the schedules take of the arenas where nothing limits them: [schedule][GPU].
[[nodiscard]] ArenaLimits arenas_wanted(const std::vector<Schedule>& schedules, const Backend& backend);

}  // namespace pshard
