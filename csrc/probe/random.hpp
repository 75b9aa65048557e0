// Data for probes: random, the same on every machine, and of magnitudes that no format overflows.
#pragma once

#include <cstdint>

#include "probe/blocks.hpp"

namespace pshard {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ULL + 1) {}
  uint64_t next();
  float next_float();  // in [-1, 1)

 private:
  uint64_t state_;
};

// Plain rows with random codes and scales near 1/64; of F32, F16 and BF16, numbers in [-1, 1).
void fill_random(WeightType type, int64_t n_rows, int64_t n_columns, uint64_t seed, uint8_t* out);

}  // namespace pshard
