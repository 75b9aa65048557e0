#include "memory/arena.hpp"

#include <algorithm>

namespace pshard {

int64_t Arena::allocate(int64_t n_bytes) {
  const int64_t size = padded(n_bytes);
  auto best = holes_.end();
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    if (hole->n_bytes >= size && (best == holes_.end() || hole->n_bytes <= best->n_bytes)) best = hole;
  }
  if (best == holes_.end()) {
    const int64_t offset = extent_;
    extent_ += size;
    return offset;
  }
  const int64_t offset = best->offset;
  best->offset += size;
  best->n_bytes -= size;
  if (best->n_bytes == 0) holes_.erase(best);
  return offset;
}

void Arena::free(int64_t offset, int64_t n_bytes) {
  const int64_t size = padded(n_bytes);
  if (size == 0) return;
  auto next = std::find_if(holes_.begin(), holes_.end(), [&](const Hole& hole) { return hole.offset > offset; });
  if (next != holes_.begin() && std::prev(next)->offset + std::prev(next)->n_bytes == offset) {
    --next;
    next->n_bytes += size;
  } else {
    next = holes_.insert(next, {offset, size});
  }
  const auto behind = std::next(next);
  if (behind != holes_.end() && next->offset + next->n_bytes == behind->offset) {
    next->n_bytes += behind->n_bytes;
    holes_.erase(behind);
  }
  if (holes_.back().offset + holes_.back().n_bytes == extent_) {
    extent_ = holes_.back().offset;
    holes_.pop_back();
  }
}

void Arena::shrink(int64_t offset, int64_t old_bytes, int64_t new_bytes) {
  const int64_t kept = padded(new_bytes);
  if (padded(old_bytes) > kept) free(offset + kept, padded(old_bytes) - kept);
}

}  // namespace pshard
