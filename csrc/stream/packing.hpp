// Places for what lies in memory during some steps of a pass: nothing over another that is there at the same time, in as little memory as
// is found. Known as dynamic storage allocation, which is NP-hard; all sizes and times are known beforehand.
//
// Places count from the end of the memory down. From its start up something else grows and shrinks; both share what lies between.
#pragma once

#include <cstdint>
#include <vector>

namespace pshard {

struct Tenant {
  int64_t n_bytes = 0;
  int32_t first = 0;  // step
  int32_t last = 0;   // included
};

struct Packing {
  std::vector<int64_t> before_end;  // by tenant: where it begins, in bytes before the end
  std::vector<int64_t> depth;       // by step: the most of those that are there
  int64_t n_bytes = 0;              // that suffice, with what grows from the start
};

// `from_start`: bytes by step; one entry at least. Sizes are rounded up to the alignment. Each tenant in turn gets the smallest gap that it
// fits in, or the farthest from the end; turns are tried until `enough` bytes suffice. O(pairs that meet) for each of at most a hundred.
[[nodiscard]] Packing pack(const std::vector<Tenant>& tenants, const std::vector<int64_t>& from_start, int64_t alignment, int64_t enough);

}  // namespace pshard
