// Where everything of a schedule lies in the arena of each GPU: resident weights and caches, room for activations, the slots of the lanes.
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
  int64_t x = 0;                 // activations, and what is written into caches
  int64_t y = 0;
  int64_t scratch = 0;
  int64_t fetched = 0;  // what an operation copies when it is about to run
  int64_t slots[2] = {0, 0};
  int64_t n_bytes = 0;  // of all of it
};

// Bytes that a device needs for activations.
struct RoomSizes {
  int64_t x = 0;
  int64_t y = 0;
};
[[nodiscard]] RoomSizes room_sizes(const Schedule& schedule, Device device);

// Where what a split copies ahead lies, from the start of its slot, in the order of the split's lists. What is fetched for one operation
// after the other takes one place in turn.
struct SplitLayout {
  std::vector<int64_t> streamed, streamed_experts, cache_up;
  int64_t slot_bytes = 0;
  int64_t fetched_bytes = 0;  // of the largest
};
[[nodiscard]] SplitLayout split_layout(const Schedule& schedule, const Split& split);

// One layout for each schedule and GPU: what several schedules keep resident has one place in all of them, so that changing between them
// moves only the rest. Indexed [schedule][Device].
[[nodiscard]] std::vector<std::vector<DeviceLayout>> lay_out(const std::vector<Schedule>& schedules, const Backend& backend);

// By GPU: the most that any of the schedules takes of its arena.
[[nodiscard]] std::vector<int64_t> arenas_needed(const std::vector<Schedule>& schedules, const Backend& backend);

}  // namespace pshard
