// The dynamic program behind `assign`: best values of all states, for one order of the devices or over all orders.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "fleet/chain_stages.hpp"
#include "fleet/device_classes.hpp"

namespace pshard {

enum class Measure : uint8_t {
  total_seconds,    // of stages and transfers
  slowest_seconds,  // stage with its transfer
  missing_bytes,    // capacities do not bind, but what exceeds them is counted
};

// Layers [begin, end) on one device.
struct Run {
  int32_t device = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

struct Solution {
  double value = std::numeric_limits<double>::infinity();  // infinite: there is none
  std::vector<Run> runs;                                   // in the order of the layers
};

class StageProgram {
 public:
  // No stage, with the transfer to it, may take longer than `limit_seconds`. `stages` must outlive the object.
  StageProgram(const ChainStages& stages, Measure measure, bool allow_empty, double limit_seconds = std::numeric_limits<double>::infinity())
      : stages_(stages), measure_(measure), allow_empty_(allow_empty), limit_seconds_(limit_seconds) {}

  [[nodiscard]] Solution in_order(std::span<const int32_t> devices);
  // Memory for each state and layer; `classes` are those of the chain.
  [[nodiscard]] Solution over_all_orders(const DeviceClasses& classes);

 private:
  // Best value with `end` layers done, the last of them from `begin` on the row's device, those before it in row `from`.
  struct Cell {
    double value = std::numeric_limits<double>::infinity();
    int32_t begin = -1;
    int32_t from = -1;
  };
  struct Source {
    int32_t row;
    int32_t device;
  };
  // A way to a device with some layers done: no other is both cheaper and faster to arrive by.
  struct Arrival {
    double value;
    double transfer_seconds;
    int32_t from;
  };
  [[nodiscard]] std::span<Cell> row(int32_t index) {
    return std::span(cells_).subspan(static_cast<size_t>(index) * row_length(), row_length());
  }
  [[nodiscard]] size_t row_length() const { return static_cast<size_t>(stages_.n_layer() + 1); }
  // Fills a row from those that its device may follow; `may_begin`: the first layer may be its.
  void fill(int32_t index, int32_t device, std::span<const Source> sources, bool may_begin);
  template <Measure kMeasure>
  void extend(std::span<Cell> cells, int32_t device, int64_t begin);
  void find_arrivals(int32_t device, int64_t begin, std::span<const Source> sources);
  void add_arrival(const Arrival& arrival);
  // Lets a row be arrived from wherever it is nearer than those before it.
  void add_nearest(int32_t index);
  [[nodiscard]] Solution trace(int32_t last_row, std::span<const int32_t> device_of_row);

  const ChainStages& stages_;
  Measure measure_;
  bool allow_empty_;
  double limit_seconds_;
  std::vector<Cell> cells_;
  std::vector<Arrival> nearest_;   // [layer] best of all rows so far, where no transfer takes time; else empty
  std::vector<Arrival> arrivals_;  // scratch
  std::vector<Source> sources_;    // scratch
};

}  // namespace pshard
