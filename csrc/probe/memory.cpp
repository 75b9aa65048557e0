#include "probe/memory.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "probe/measure.hpp"

namespace pshard {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kCacheUntold = int64_t{128} << 20;
constexpr int64_t kColdFactor = 2;  // a cache that does not evict the oldest first still holds some of what was read one size ago

}  // namespace

Buffer::Buffer(int64_t n_bytes) : size_(n_bytes) {
  const int64_t whole = (std::max<int64_t>(n_bytes, 1) + kPageBytes - 1) / kPageBytes * kPageBytes;
  data_.reset(static_cast<uint8_t*>(std::aligned_alloc(kPageBytes, static_cast<std::size_t>(whole))));
  if (!data_) throw ProbeError("no memory for " + std::to_string(n_bytes) + " bytes; close programs, or probe smaller shapes");
}

void Buffer::Free::operator()(uint8_t* data) const { std::free(data); }

int64_t last_level_cache_bytes() {
  int64_t bytes = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  for (const int level : {_SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL4_CACHE_SIZE}) {
    bytes = std::max<int64_t>(bytes, sysconf(level));
  }
#endif
  return bytes > 0 ? bytes : kCacheUntold;
}

int64_t cold_bytes() { return kColdFactor * last_level_cache_bytes(); }

}  // namespace pshard
