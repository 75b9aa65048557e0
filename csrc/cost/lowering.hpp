// From operations to splits: one block under one placement becomes a few segments with seconds and bytes.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "cost/machines.hpp"
#include "cost/op_cost.hpp"
#include "cost/timeline.hpp"
#include "model/forward.hpp"
#include "model/fusion.hpp"
#include "model/moves.hpp"

namespace pshard {

struct GpuCosts {
  std::vector<Cost> resident;
  std::vector<Cost> copied;  // with weights that were just copied
  std::vector<Cost> joined;  // as a part of a run that is one kernel
};

// A block with every operation priced on all processors; independent of the placement.
struct PricedBlock {
  Block block;
  std::vector<GpuCosts> gpus;  // by machine
  std::vector<Cost> cpu;
  std::vector<double> weight_bytes;  // of its weight that each operation reads
  std::vector<KernelRun> runs;       // one kernel each on a GPU, where nothing comes between
};

struct LoweredBlock {
  std::vector<Segment> segments;
  Device residual = Device::host;  // where the block leaves its result
};

// No order of splits is faster than all serial work, than all copies up, or than all that the host's memory delivers.
struct PassBound {
  double serial_seconds = 0.0;
  double up_seconds = 0.0;
  double host_memory_seconds = 0.0;
  PassBound& operator+=(const PassBound& other) {
    serial_seconds += other.serial_seconds;
    up_seconds += other.up_seconds;
    host_memory_seconds += other.host_memory_seconds;
    return *this;
  }
  PassBound& operator-=(const PassBound& other) {
    serial_seconds -= other.serial_seconds;
    up_seconds -= other.up_seconds;
    host_memory_seconds -= other.host_memory_seconds;
    return *this;
  }
  [[nodiscard]] double seconds() const { return std::max({serial_seconds, up_seconds, host_memory_seconds}); }
};

// Which operations count: all where it is empty. Of the others nothing but what has to move for them is priced.
using Counted = std::function<bool(const Operation&)>;

// Throws std::invalid_argument where a weight type has no rate.
[[nodiscard]] PricedBlock price_block(const Model& model, const Machines& machines, const Pass& pass, Block block,
                                      const Counted& counted = {});

// Segments of the block. `residual` says where the block's input is; graph inputs are taken to be everywhere.
[[nodiscard]] LoweredBlock lower(const PricedBlock& block, const Model& model, const Machines& machines, const BlockPlacement& placement,
                                 const Neighbours& neighbours, Device residual);

// What the block costs at least, whatever its neighbours are, on one GPU.
[[nodiscard]] PassBound bound(const PricedBlock& block, const Model& model, const Machine& machine, const BlockPlacement& placement);

// What two neighbours add: where one ends on another device than `block` begins on, the hidden state and a hand-off cross; between two
// lanes of the GPU, an event is waited for.
[[nodiscard]] PassBound bound_between(const PricedBlock& block, const Machine& machine, const BlockEnds& before, const BlockEnds& after);

// Weights whose home is host memory.
[[nodiscard]] int64_t host_home_bytes(const PricedBlock& block, const BlockPlacement& placement);

}  // namespace pshard
