// Runs schedules: resident weights in the arena, the rest copied one split ahead while splits compute, every split and copy timed.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "stream/backend.hpp"
#include "stream/pass_run.hpp"
#include "stream/schedule.hpp"
#include "stream/weights.hpp"

namespace pshard {

struct SwitchRecord {
  double seconds = 0.0;
  int64_t up_bytes = 0;    // weights and cache that became resident
  int64_t down_bytes = 0;  // cache that lost its place
};

class Executor {
 public:
  // `backend` and `source` outlive it. Throws StreamError where a schedule needs more of an arena than `vram_bytes`, or than there is, and
  // what `poll` throws, which is called now and then.
  Executor(Backend& backend, const WeightSource& source, std::vector<Schedule> schedules, const ExecutorOptions& options,
           const std::function<void()>& poll = {});
  ~Executor();

  // Makes what the schedule keeps resident so. `poll` as in Backend::finish.
  SwitchRecord load(size_t schedule, const std::function<void()>& poll = {});
  // One pass; loads first, where another schedule is loaded. After an error everything is loaded anew.
  PassRecord run(size_t schedule, const std::function<void()>& poll = {});

  [[nodiscard]] const std::vector<Schedule>& schedules() const { return bench_.schedules; }
  [[nodiscard]] int64_t arena_bytes(size_t schedule, Device device) const;
  [[nodiscard]] int64_t locked_bytes() const { return locked_bytes_; }
  // Weights that are copied and that the system would not lock, so that they are staged.
  [[nodiscard]] int64_t staged_bytes() const { return staged_bytes_; }

 private:
  // Queues by `work`, and waits for it.
  void carry_out(const std::function<void()>& work, const std::function<void()>& poll);
  // What is queued works on memory of the executor and of the pass: after an error it must end before that goes.
  void drain() noexcept;
  // That bytes of weights went away is the cause of what else went wrong.
  void require_sound_source() const;
  void check_sizes() const;
  void make_rooms(const std::function<void()>& poll);
  [[nodiscard]] std::set<int32_t> moving_caches() const;
  void lock_memory(const std::function<void()>& poll);
  void move_caches(size_t schedule, bool up, SwitchRecord& moved);
  void bring_up_weights(size_t schedule, SwitchRecord& moved);
  void fill_rooms(size_t schedule);

  Workbench bench_;
  int loaded_ = -1;
  int64_t n_passes_ = 0;
  int64_t locked_bytes_ = 0;
  int64_t staged_bytes_ = 0;
};

}  // namespace pshard
