// Shapes that reach every path of the GPU's kernels, small enough for a CPU to run them thread by thread.
#pragma once

#include <vector>

#include "probe/gpu_kernels.hpp"

namespace pshard::gpu_cases {

inline std::vector<GpuProduct> products(WeightType type) {
  std::vector<GpuProduct> shapes;
  for (int64_t batch = 1; batch <= kVectorBatch; ++batch) shapes.push_back({type, 5, 1024, batch});
  shapes.insert(shapes.end(), {{type, 131, 512, 33},    // tiles of 64, a second one of the rows
                               {type, 40, 256, 9},      // of 32
                               {type, 16, 256, 130},    // of 128, two of them
                               {type, 20, 1280, 10},    // columns in two parts
                               {type, 20, 1792, 10}});  // in three, the last shorter, none at the edge of a block of 256
  if (format_of(type).columns > 32) return shapes;
  // An odd number of blocks: they begin wherever their size allows, and the last ends there.
  shapes.insert(shapes.end(), {{type, 33, 288, 9}, {type, 5, 288, 2}, {type, 1, 32, 1}, {type, 1, 32, 9}, {type, 3, 32, 9}});
  return shapes;
}

inline std::vector<GpuExperts> experts(WeightType type) {
  return {{type, 6, 512, 5, 2, 1, false},    // each use by itself
          {type, 6, 512, 5, 3, 2, true},     //
          {type, 24, 256, 7, 3, 20, false},  // tiles of 32
          {type, 24, 256, 3, 2, 70, true},   // of 64
          {type, 8, 256, 2, 2, 140, false},  // of 128, two for each expert
          {type, 5, 256, 1, 1, 9, true},     // one expert
          {type, 3, 256, 40, 1, 9, false}};  // more than are used
}

inline std::vector<AttentionShape> attention(int64_t head_size) {
  return {{4, 1, head_size, 300, 1},  // in splits, four heads together
          {2, 1, head_size, 130, 3},  // two heads together
          {3, 1, head_size, 9, 8},    // one
          {2, 1, head_size, 40, 20},  // in tiles, part of one
          {1, 1, head_size, 70, 9}};  // over more cells than are looked at at once
}

inline const std::vector<int64_t> kHeadSizes{64, 96, 128, 192, 256};
inline const std::vector<WeightType> kTypes = [] {
  std::vector<WeightType> types;
  for (int i = 0; i < kWeightTypes; ++i) {
    if (const auto type = static_cast<WeightType>(i); gpu_multiplies(type)) types.push_back(type);
  }
  return types;
}();

}  // namespace pshard::gpu_cases
