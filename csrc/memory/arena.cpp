#include "memory/arena.hpp"

#include <algorithm>

namespace pshard {

int64_t Arena::allocate(int64_t n_bytes) {
  const int64_t size = padded(n_bytes);
  const auto last = std::prev(free_.end());
  auto best = last;
  for (auto range = free_.begin(); range != last; ++range) {
    if (range->n_bytes >= size && (best == last || range->n_bytes <= best->n_bytes)) best = range;
  }
  const int64_t offset = best->offset;
  best->offset += size;
  best->n_bytes -= size;
  if (best->n_bytes == 0) free_.erase(best);
  return offset;
}

void Arena::free(int64_t offset, int64_t n_bytes) {
  const Range freed{offset, padded(n_bytes)};
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    const auto behind = std::next(range);
    if (range->end() == freed.offset) {
      range->n_bytes += freed.n_bytes;
      if (behind != free_.end() && range->end() == behind->offset) {
        range->n_bytes += behind->n_bytes;
        free_.erase(behind);
      }
      return;
    }
    if (freed.end() == range->offset) {
      range->offset = freed.offset;
      range->n_bytes += freed.n_bytes;
      if (range != free_.begin() && std::prev(range)->end() == range->offset) {
        std::prev(range)->n_bytes += range->n_bytes;
        free_.erase(range);
      }
      return;
    }
  }
  const auto behind = std::find_if(free_.begin(), free_.end(), [&](const Range& range) { return range.offset >= freed.offset; });
  free_.insert(behind, freed);
}

void Arena::shrink(int64_t offset, int64_t old_bytes, int64_t new_bytes) {
  const int64_t kept = padded(new_bytes);
  if (padded(old_bytes) > kept) free(offset + kept, padded(old_bytes) - kept);
}

}  // namespace pshard
