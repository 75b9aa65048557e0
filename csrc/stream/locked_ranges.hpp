// Which host memory is page-locked: ranges of whole pages that do not overlap. A driver takes a copy whose host side lies in one of them,
// or in none; it refuses one that crosses from one into another.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

namespace pshard {

class LockedRanges {
 public:
  explicit LockedRanges(int64_t page_bytes) : page_bytes_(static_cast<uintptr_t>(page_bytes)) {}

  // Has `lock` take the pages of these bytes that are in no range yet, in runs as long as can be. False once it refuses one.
  using Lock = std::function<bool(void* begin, int64_t n_bytes)>;
  bool add(const uint8_t* bytes, int64_t n_bytes, const Lock& lock);
  void clear(const std::function<void(void* begin)>& unlock);

  // Bytes from here on that are of the same kind: in one range, or in none.
  struct Extent {
    bool is_locked = false;
    int64_t n_bytes = 0;
  };
  [[nodiscard]] Extent from(const uint8_t* bytes) const;
  [[nodiscard]] int64_t n_bytes() const { return n_bytes_; }

 private:
  uintptr_t page_bytes_;
  std::map<uintptr_t, uintptr_t> ranges_;  // begin -> end
  int64_t n_bytes_ = 0;
};

}  // namespace pshard
