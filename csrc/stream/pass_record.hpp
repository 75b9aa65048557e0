// What a pass took: every split and every copy, and the bytes that moved.
#pragma once

#include <cstdint>
#include <vector>

#include "stream/backend.hpp"

namespace pshard {

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

}  // namespace pshard
