// One pass of a schedule, queued split by split.
//
// Splits run one after the other. While one computes, the lane of the next may copy, one split ahead and no further; a lane holds the
// copies of one split. This is what `cost/timeline` prices.
#pragma once

#include <array>
#include <vector>

#include "probe/memory.hpp"
#include "stream/backend.hpp"
#include "stream/layout.hpp"
#include "stream/pass_record.hpp"
#include "stream/routing.hpp"
#include "stream/schedule.hpp"
#include "stream/weights.hpp"

namespace pshard {

// `serial`: nothing is copied ahead. `unordered`: nothing waits for anything, so that all queues run at the rate they reach side by side;
// what comes out is meaningless. Products then take weights from where they are copied from, as cold as each first use of a copy.
enum class Order : uint8_t { overlapped, serial, unordered };

struct ExecutorOptions {
  ArenaLimits vram_bytes;  // what each schedule may use
  RoutingRule routing;
  Order order = Order::overlapped;
  bool check = false;                             // what arrives by checksum, every product with a reference
  int64_t lock_piece_bytes = int64_t{256} << 20;  // locked at a time: what a driver refuses is then only the rest
};

// Of a value on its way, with what keeps the next one apart.
[[nodiscard]] inline int64_t room_for(const ValueMove& value) { return (value.n_bytes + 63) / 64 * 64; }

// What passes work with, made once.
struct Workbench {
  Backend& backend;
  const WeightSource& source;
  std::vector<Schedule> schedules;
  ExecutorOptions options{};
  std::vector<ScheduleLayout> layouts{};
  std::vector<std::vector<const uint8_t*>> sources{};  // [schedule][tensor]
  std::vector<std::vector<uint64_t>> checksums{};      // of them, where it checks
  std::vector<Buffer> caches{};                        // by layer, where they live in host memory
  Buffer x{}, y{}, fetched{};                          // of the host
  Buffer passing{};                                    // activations on their way from one device to another
  Buffer pattern{};  // the activations that every device has: floats of which each half is a finite F16 too, for caches
  Buffer spoiled{};  // what nothing computes: shows that something did not come
  std::array<int64_t, kMaxDevices> clean{};  // of each GPU's activations, bytes from their start that nothing was written over

  [[nodiscard]] uint8_t* x_of(size_t schedule, Device device) const;
  // Where the layer's cache has its home.
  [[nodiscard]] uint8_t* cache_home(size_t schedule, int32_t layer) const;
};

class PassRun {
 public:
  PassRun(Workbench& bench, size_t schedule, int64_t pass);
  // Queues all of it, and forgets the events of before.
  void queue();
  // Once the backend is done.
  [[nodiscard]] PassRecord record() const;

 private:
  struct Times {
    Event begin = kNoEvent, compute = kNoEvent, end = kNoEvent;
  };
  struct Copy {
    int32_t split;
    Queue queue;
    Event begin, end;
    int64_t n_bytes;
    bool is_within;  // the split's own work, between two operations
  };

  // The first `n_bytes` of them, brought again as far as something was written over them.
  [[nodiscard]] uint8_t* activations(Device device, int64_t n_bytes);
  [[nodiscard]] uint8_t* activations(Device device, const OperationLayout& operation);
  // Writes them from `from`.
  void bring(Queue queue, const uint8_t* from, int64_t n_bytes);
  // Where something is written in the arena, over activations or not.
  [[nodiscard]] uint8_t* place(Device device, int64_t offset);
  [[nodiscard]] uint8_t* result(Device device, int64_t offset);
  [[nodiscard]] uint8_t* fetched(Device device, int64_t offset);

  void bring_inputs();
  void copy_ahead(size_t split);
  void copy_now(size_t split);
  void bring_values(size_t split);
  void fetch(size_t split, size_t operation);
  void compute(size_t split);
  void write_back(size_t split);
  void send_outputs();

  int64_t copy_experts(Queue queue, const Split& split, int32_t tensor, uint8_t* to);
  void multiply(Queue queue, size_t split, size_t operation);
  void attend(Queue queue, size_t split, size_t operation);
  // Streamed weights when their split begins, and each again once it is read for the last time.
  void check_streamed(size_t split);
  void check_read(size_t split, size_t operation);
  void check_streamed(const Split& split, int32_t tensor, int64_t offset);
  void check_slices(const Split& split, const StreamOperation& work, const uint8_t* bytes);
  void check_bytes(Queue queue, const std::string& name, const uint8_t* bytes, int64_t n_bytes, uint64_t expected);
  void wait(Queue queue, Event event);
  [[nodiscard]] bool slices(const Split& split) const;
  [[nodiscard]] Queue compute_queue(const Split& split) const { return {split.device, Stream::compute}; }
  [[nodiscard]] Queue lane_queue(const Split& split) const;
  [[nodiscard]] const SplitLayout& places(size_t split) const { return bench_.layouts[index_].splits[split]; }
  [[nodiscard]] int64_t streamed_at(size_t split, int32_t tensor) const;
  [[nodiscard]] bool reads_sources() const;
  // Where they are when the operation runs.
  [[nodiscard]] const uint8_t* weights(size_t split, size_t operation);
  [[nodiscard]] uint8_t* streamed_cache(size_t split, int32_t layer) const;
  [[nodiscard]] const Routes& routes(int32_t layer) const { return routes_[static_cast<size_t>(layer)]; }
  [[nodiscard]] Event end_of(size_t split_before) const;
  // What a split must wait for before it works where caches lay: they may still be on their way down.
  [[nodiscard]] Event may_work_over(Device device, size_t split) const;
  // The last way down of a device's caches, of the first `n_splits`.
  [[nodiscard]] Event written_by(Device device, size_t n_splits) const;

  Workbench& bench_;
  size_t index_;
  const Schedule& schedule_;
  std::vector<Routes> routes_;  // by layer
  std::vector<Times> times_;
  std::vector<Copy> copies_;
  std::vector<Event> arrived_;  // by split: what was copied ahead
  std::vector<Event> fetched_;  // what was copied when it was about to run
  std::vector<Event> written_;  // its cache has gone down
  Event start_ = kNoEvent;
  Event end_ = kNoEvent;
  PassRecord record_;
};

}  // namespace pshard
