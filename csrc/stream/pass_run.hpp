// One pass of a schedule, queued split by split.
//
// Splits run one after the other. While one computes, the lane of the next may copy, one split ahead and no further, into its slot, once
// the last split of that lane has left it. This is what `cost/timeline` prices.
#pragma once

#include <vector>

#include "probe/memory.hpp"
#include "stream/backend.hpp"
#include "stream/layout.hpp"
#include "stream/routing.hpp"
#include "stream/schedule.hpp"
#include "stream/weights.hpp"

namespace pshard {

// `serial`: nothing is copied ahead. `unordered`: nothing waits for anything, so that all queues run at the rate they reach side by side;
// what comes out is meaningless.
enum class Order : uint8_t { overlapped, serial, unordered };

struct ExecutorOptions {
  std::vector<int64_t> vram_bytes;  // by GPU: what may be used of its arena
  RoutingRule routing;
  Order order = Order::overlapped;
  bool check = false;                             // what arrives by checksum, every product with a reference
  int64_t lock_piece_bytes = int64_t{256} << 20;  // locked at a time: what a driver refuses is then only the rest
};

// Seconds from the start of the pass.
struct SplitRecord {
  double begin_seconds = 0.0;    // it has all that it waited for
  double compute_seconds = 0.0;  // of its operations, once activations have come, without copies between them
  double end_seconds = 0.0;
};

struct CopyRecord {
  int32_t split = 0;  // that it is for
  Queue queue;
  double begin_seconds = 0.0;
  double end_seconds = 0.0;
  int64_t n_bytes = 0;
};

struct PassRecord {
  double seconds = 0.0;
  std::vector<SplitRecord> splits;
  std::vector<CopyRecord> copies;  // of weights and cache
  int64_t up_bytes = 0;            // weights and cache
  int64_t down_bytes = 0;          // cache
  int64_t activation_bytes = 0;    // both ways, graph inputs and logits included
  int64_t n_checked = 0;           // shards and results that were compared
};

// Of a value on its way, with what keeps the next one apart.
[[nodiscard]] inline int64_t room_for(const ValueMove& value) { return (value.n_bytes + 63) / 64 * 64; }

// What passes work with, made once.
struct Workbench {
  Backend& backend;
  const WeightSource& source;
  std::vector<Schedule> schedules;
  ExecutorOptions options{};
  std::vector<std::vector<DeviceLayout>> layouts{};    // [schedule][Device]
  std::vector<std::vector<SplitLayout>> splits{};      // [schedule][split]
  std::vector<std::vector<const uint8_t*>> sources{};  // [schedule][tensor]
  std::vector<std::vector<uint64_t>> checksums{};      // of them, where it checks
  std::vector<Buffer> caches{};                        // by layer, where they live in host memory
  Buffer x{}, y{}, fetched{};                          // of the host
  Buffer passing{};                                    // activations on their way from one device to another
  Buffer pattern{};  // the activations that every device has: floats of which each half is a finite F16 too, for caches
  Buffer spoiled{};  // what nothing computes: shows that something did not come

  [[nodiscard]] uint8_t* x_of(size_t schedule, Device device) const;
  [[nodiscard]] uint8_t* y_of(size_t schedule, Device device) const;
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

  void bring_inputs();
  void copy_ahead(size_t split);
  void copy_now(size_t split);
  void bring_values(size_t split);
  void fetch(size_t split, const StreamOperation& work);
  void compute(size_t split);
  void write_back(size_t split);
  void send_outputs();

  int64_t copy_experts(Queue queue, const Split& split, int32_t tensor, uint8_t* to);
  void multiply(Queue queue, size_t split, size_t operation);
  void check_shards(size_t split);
  void check_slices(const Split& split, const StreamOperation& work, const uint8_t* bytes);
  void check_bytes(Queue queue, const std::string& name, const uint8_t* bytes, int64_t n_bytes, uint64_t expected);
  void wait(Queue queue, Event event);
  [[nodiscard]] bool slices(const Split& split) const;
  [[nodiscard]] Queue compute_queue(const Split& split) const { return {split.device, Stream::compute}; }
  [[nodiscard]] Queue lane_queue(const Split& split) const;
  [[nodiscard]] uint8_t* slot(const Split& split) const;
  [[nodiscard]] uint8_t* fetched(const Split& split) const;
  [[nodiscard]] const uint8_t* weights(size_t split, int32_t tensor) const;
  [[nodiscard]] uint8_t* cache(size_t split, int32_t layer) const;
  [[nodiscard]] const Routes& routes(int32_t layer) const { return routes_[static_cast<size_t>(layer)]; }
  [[nodiscard]] Event end_of(size_t split_before) const;

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
