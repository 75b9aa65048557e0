// Good orders of many devices: a heuristic, for clusters whose orders are too many to try.
#pragma once

#include <cstdint>
#include <vector>

#include "fleet/stage_program.hpp"

namespace pshard {

struct OrderedSolution {
  Solution solution;
  double seconds = 0.0;  // ties of the slowest stage are broken by it
  std::vector<int32_t> order;
  int64_t n_orders = 0;  // solved
};

// Stops where it reaches `bound`, better than which there is nothing.
//
// Begins with the order by index, by speed and along the shortest links, and moves or swaps single devices while that helps: each order is
// solved exactly. How many are tried depends on the size only, so that the result does not depend on the clock. An infinite value where no
// order that was tried is feasible.
[[nodiscard]] OrderedSolution search_order(const ChainStages& stages, const DeviceClasses& classes, Measure measure, bool allow_empty,
                                           double bound);

}  // namespace pshard
