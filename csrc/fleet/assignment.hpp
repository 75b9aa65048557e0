// Layers of a chain to devices: each device takes one contiguous run or none, no memory overflows, and one token takes the least time, or
// the slowest stage does.
//
// It is a shortest path with resources, solved exactly: a state is (device of the last stage, layers done), and with the order of the
// devices open also the set of devices used. Stage times are sums over the run, plus what the activations take to get there from the stage
// before; where the slowest stage counts, the way of least total time among those with the least slowest stage.
//
// Cost: devices^2 layers (without transfers devices layers) + devices layers^2 in a given order, 2^devices times half of that over all
// orders, less where devices may change places. Where the slowest stage counts and memory is not what decides, of the layers^2 only stages
// that take no more than a few times an even share. Beyond kMaxExactOrder different devices the order is searched by improving some good
// ones, each solved exactly; `exact` in the result then says whether a bound of all orders was reached.
#pragma once

#include <cstdint>
#include <vector>

namespace pshard {

inline constexpr int32_t kMaxExactOrder = 8;

enum class Objective : uint8_t {
  latency,     // sum of stage and transfer seconds: one stream of tokens
  throughput,  // slowest stage, with what it waits for its input: many streams in a pipeline
};

// Tables are row by row, seconds finite and not negative, bytes not negative. Empty optional ones stand for zeros.
struct Chain {
  int64_t n_layer = 0;
  int32_t n_device = 0;
  std::vector<double> layer_seconds;     // [layer][device]
  std::vector<double> transfer_seconds;  // [from device][to device], between neighbouring stages, infinite: no way; optional
  std::vector<double> entry_seconds;     // [device] of the stage that has the first layer; optional
  std::vector<double> exit_seconds;      // [device] of the one that has the last; optional

  // A device has one memory or, where several share its layers, more; memory m belongs to memory_device[m]. Empty: one each.
  std::vector<int32_t> memory_device;
  std::vector<int64_t> capacity_bytes;  // [memory]
  std::vector<int64_t> layer_bytes;     // [layer][memory]
  std::vector<int64_t> fixed_bytes;     // [memory] of a device that has layers; optional
  std::vector<int64_t> entry_bytes;     // [memory] of the device that has the first layer; optional
  std::vector<int64_t> exit_bytes;      // [memory] of the one that has the last; optional

  // What a memory needs besides for layers [begin, end), which need not add up by layers: compute buffers. Never less for more layers, the
  // chain's own end apart. [table][begin][end], with the chain's layers + 1 rows and columns; memory m has table run_table[m]; optional.
  std::vector<int32_t> run_table;
  std::vector<int64_t> run_bytes;
};

struct AssignmentOptions {
  Objective objective = Objective::latency;
  bool search_order = false;  // else the devices follow each other by index
  bool allow_empty = true;    // devices may stay without layers
  int32_t max_exact_order = kMaxExactOrder;
};

// Layers [begin, end) on one device.
struct Stage {
  int32_t device = 0;
  int64_t begin = 0;
  int64_t end = 0;
  double seconds = 0.0;           // of its layers, entry and exit included
  double transfer_seconds = 0.0;  // from the stage before it
};

struct Assignment {
  bool feasible = false;
  bool exact = false;            // no other assignment is better, of any order where that was open
  std::vector<Stage> stages;     // in the order of the layers; where nothing is feasible, those that lack the fewest bytes
  double seconds = 0.0;          // of all stages and transfers
  double slowest_seconds = 0.0;  // of the slowest stage and the transfer to it
  int64_t missing_bytes = 0;     // that these stages lack over all memories; 0 where feasible
  int64_t n_orders = 0;          // orders that were solved one by one
};

// Ties go to the device, and then the first layer, of the lowest index. Throws std::invalid_argument where there are no layers or devices,
// tables do not fit them, a figure is out of its range, or more devices than layers must all have one.
[[nodiscard]] Assignment assign(const Chain& chain, const AssignmentOptions& options);

}  // namespace pshard
