// What executes: queues of work on devices, events between them, memory. The executor knows no more of a GPU than this.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "model/schedule.hpp"
#include "probe/attention.hpp"
#include "probe/blocks.hpp"
#include "stream/routing.hpp"

namespace pshard {

// Something that a person can mend, said with what to do.
class StreamError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Each works in order, beside the others. The host has only `compute`.
enum class Stream : uint8_t { compute, lane_a, lane_b, down };
inline constexpr int kStreams = 4;

struct Queue {
  Device device = Device::host;
  Stream stream = Stream::compute;
};

using Event = int32_t;
inline constexpr Event kNoEvent = -1;

// y[m][n] = x[m][k] times the transposed weight. With `routes`, m counts its rows, `weights` holds all experts one after the other, and x
// has a row for each token unless `has_own_rows`. How y is ordered then is the backend's: see `y_row`.
struct Product {
  WeightType type = WeightType::f16;
  int64_t n = 0, k = 0, m = 0;
  int64_t n_expert = 1;
  bool has_own_rows = false;
  const Routes* routes = nullptr;
  const uint8_t* weights = nullptr;
  const float* x = nullptr;
  float* y = nullptr;
  uint8_t* scratch = nullptr;  // of `scratch_bytes`
};

struct AttentionWork {
  AttentionShape shape;
  const uint8_t* cache = nullptr;  // keys, then values
  const float* x = nullptr;        // queries, where the backend takes them from outside
  float* y = nullptr;
  uint8_t* scratch = nullptr;
};

// What work needs in the arena besides its operands; nothing, unless a backend says otherwise.
class Scratch {
 public:
  virtual ~Scratch() = default;
  [[nodiscard]] virtual int64_t scratch_bytes(const Product&) const { return 0; }
  [[nodiscard]] virtual int64_t scratch_bytes(const AttentionShape&) const { return 0; }
};

class Backend : public Scratch {
 public:
  // Memory of a device that was reserved, and how much.
  [[nodiscard]] virtual uint8_t* arena(Device device) = 0;
  [[nodiscard]] virtual int64_t arena_bytes(Device device) const = 0;
  // Whether work on its devices may take host memory for theirs.
  [[nodiscard]] virtual bool reads_host_memory() const { return false; }

  // Whether host memory is now page-locked, so that copies from it need no staging; false where the system refuses.
  [[nodiscard]] virtual bool lock(const uint8_t* bytes, int64_t n_bytes) = 0;
  virtual void unlock_all() = 0;

  // Work, in the order of each queue. Operands must live until the queue has passed them. Errors come out of `finish`.
  virtual void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) = 0;
  virtual void multiply(Queue queue, const Product& product) = 0;
  virtual void attend(Queue queue, const AttentionWork& work) = 0;
  // Shows `look` what device memory holds when the queue gets there; what it throws is an error of the pass.
  virtual void inspect(Queue queue, const uint8_t* bytes, int64_t n_bytes, std::function<void(const uint8_t*)> look) = 0;
  // What is wrong with the last attention of the queue is an error of the pass.
  virtual void check_attention(Queue queue, const AttentionWork& work) = 0;
  // Row of y that holds routes->rows[i] of a routed product, where it was computed.
  [[nodiscard]] virtual int64_t y_row(const Product& product, int64_t i) const = 0;

  [[nodiscard]] virtual Event record(Queue queue) = 0;
  // When the queue could begin with what it is given next. Nobody waits for it, so that a backend need not record it: it came when all had
  // that the queue waited for, and its own last event.
  [[nodiscard]] virtual Event begin(Queue queue) { return record(queue); }
  virtual void wait(Queue queue, Event event) = 0;

  // Waits until all queues are done, calling `poll` now and then; if that throws, so does this, once they are. Throws StreamError with the
  // first error. In any case the backend can be used again.
  virtual void finish(const std::function<void()>& poll) = 0;
  [[nodiscard]] virtual bool has_come(Event event) = 0;
  // When the event came, from any moment. Until `forget_events`.
  [[nodiscard]] virtual double seconds(Event event) = 0;
  virtual void forget_events() = 0;
};

}  // namespace pshard
