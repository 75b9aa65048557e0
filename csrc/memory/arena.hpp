// One buffer as ggml's graph allocator fills it: best fit among the holes, else at the end; a hole merges with its neighbours when it is
// freed. Only offsets are kept, nothing is allocated.
#pragma once

#include <cstdint>
#include <vector>

namespace pshard {

class Arena {
 public:
  explicit Arena(int64_t alignment) : alignment_(alignment) {}

  // Offset of `n_bytes`, padded to the alignment. Of equal holes the last is taken. O(holes).
  [[nodiscard]] int64_t allocate(int64_t n_bytes);
  // Requires a range that is allocated. O(holes).
  void free(int64_t offset, int64_t n_bytes);
  // Gives back what an allocation of `old_bytes` does not need any more.
  void shrink(int64_t offset, int64_t old_bytes, int64_t new_bytes);

  // End of the last allocation that is still there.
  [[nodiscard]] int64_t extent() const { return extent_; }
  bool operator==(const Arena&) const = default;

 private:
  struct Hole {
    int64_t offset = 0;
    int64_t n_bytes = 0;
    bool operator==(const Hole&) const = default;
  };
  [[nodiscard]] int64_t padded(int64_t n_bytes) const { return (n_bytes + alignment_ - 1) / alignment_ * alignment_; }

  int64_t alignment_;
  int64_t extent_ = 0;
  std::vector<Hole> holes_;  // by offset, none adjacent to another or to the end
};

}  // namespace pshard
