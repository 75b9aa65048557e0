#include "stream/locked_ranges.hpp"

#include <algorithm>
#include <iterator>

namespace pshard {
namespace {

void* pointer_to(uintptr_t address) { return reinterpret_cast<void*>(address); }  // NOLINT: pages are numbers here

}  // namespace

bool LockedRanges::add(const uint8_t* bytes, int64_t n_bytes, const Lock& lock) {
  const auto first = reinterpret_cast<uintptr_t>(bytes);
  const uintptr_t end = (first + static_cast<uintptr_t>(n_bytes) + page_bytes_ - 1) / page_bytes_ * page_bytes_;
  for (uintptr_t at = first / page_bytes_ * page_bytes_; at < end;) {
    const auto after = ranges_.upper_bound(at);
    if (after != ranges_.begin() && std::prev(after)->second > at) {
      at = std::prev(after)->second;
      continue;
    }
    const uintptr_t until = after == ranges_.end() ? end : std::min(end, after->first);
    const auto n = static_cast<int64_t>(until - at);
    if (!lock(pointer_to(at), n)) return false;
    ranges_[at] = until;
    n_bytes_ += n;
    at = until;
  }
  return true;
}

void LockedRanges::clear(const std::function<void(void* begin)>& unlock) {
  for (const auto& [begin, end] : ranges_) unlock(pointer_to(begin));
  ranges_.clear();
  n_bytes_ = 0;
}

LockedRanges::Extent LockedRanges::from(const uint8_t* bytes) const {
  const auto at = reinterpret_cast<uintptr_t>(bytes);
  const auto after = ranges_.upper_bound(at);
  if (after != ranges_.begin() && std::prev(after)->second > at) return {true, static_cast<int64_t>(std::prev(after)->second - at)};
  return {false, after == ranges_.end() ? INT64_MAX : static_cast<int64_t>(after->first - at)};
}

}  // namespace pshard
