// Where everything of a schedule lies in the arena of each GPU, and when. From the start: what is resident, then the activations of the
// operation that runs. From the end: what is there for a while, packed by time. What streams comes while the split before computes and
// stays until it is read, caches until their split ends; results, scratch and what is copied for one operation stay for that operation.
// Activations that find no room behind what is resident are copied to where there is some.
#pragma once

#include <cstdint>
#include <vector>

#include "stream/backend.hpp"
#include "stream/packing.hpp"
#include "stream/schedule.hpp"

namespace pshard {

inline constexpr int64_t kNowhere = -1;

// Offsets are those in the arena; on the host, in the executor's own buffers.
struct OperationLayout {
  int64_t x = 0;  // activations that it reads
  int64_t x_bytes = 0;
  int64_t y = 0;               // its result
  int64_t fetched = kNowhere;  // what is copied for it when it is about to run
  int64_t scratch = kNowhere;
};

struct SplitLayout {
  // In the order of the split's lists. Of a cache that is named twice, one place.
  std::vector<int64_t> streamed, streamed_experts, cache_up;
  std::vector<OperationLayout> operations;
  int64_t unused = kNowhere;      // offloaded weights that no operation here multiplies: one after the other
  bool meets_write_back = false;  // it works where a cache of the split before lies
};

// By step of the pass: each split has one in which it receives values, then one for each operation; the last is for the logits.
struct Lying {
  int64_t offset = 0;
  Tenant tenant;
};

struct DeviceLayout {
  std::vector<int64_t> tensors;  // by Schedule::tensors: offset in the arena, or kNowhere
  std::vector<int64_t> caches;   // by layer
  int64_t x = 0;                 // activations; before them, what is resident
  std::vector<Lying> lying;      // behind `x`, activations too
  int64_t n_bytes = 0;           // of all of it
};

struct ScheduleLayout {
  std::vector<DeviceLayout> devices;  // by Device
  std::vector<SplitLayout> splits;
  int64_t output = 0;  // logits
};

// The most that each operand takes, of any operation on the device.
struct OperandBytes {
  int64_t x = 0;
  int64_t y = 0;
  int64_t fetched = 0;
};
[[nodiscard]] OperandBytes most_bytes(const Schedule& schedule, Device device);

// Bytes that may be used of each GPU's arena, indexed [schedule][GPU].
using ArenaLimits = std::vector<std::vector<int64_t>>;

// One layout for each schedule: what several schedules keep resident has one place in all of them, so that changing between them moves only
// the rest. Where its limit allows, nothing lies over activations of any step, so that they need not be copied again.
[[nodiscard]] std::vector<ScheduleLayout> lay_out(const std::vector<Schedule>& schedules, const ArenaLimits& limits,
                                                  const Scratch& scratch);

// What the schedules take of the arenas where nothing limits them: [schedule][GPU].
[[nodiscard]] ArenaLimits arenas_wanted(const std::vector<Schedule>& schedules, const Scratch& scratch);

}  // namespace pshard
