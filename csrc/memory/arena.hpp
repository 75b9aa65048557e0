// One buffer as ggml's graph allocator fills it: best fit among the free ranges, else at the end; a range that is freed merges with its
// neighbours. Only offsets are kept, nothing is allocated.
//
// Empty tensors take part as in ggml: they have an offset and no bytes. Freed where its offset has meanwhile fallen inside a free range,
// one leaves an empty range there, beyond which that range no longer merges.
#pragma once

#include <cstdint>
#include <vector>

namespace pshard {

class Arena {
 public:
  explicit Arena(int64_t alignment) : alignment_(alignment), free_{{0, kEndless}} {}

  // Offset of `n_bytes`, padded to the alignment. Of equal ranges the last is taken. O(ranges).
  [[nodiscard]] int64_t allocate(int64_t n_bytes);
  // Requires a range that is allocated. O(ranges).
  void free(int64_t offset, int64_t n_bytes);
  // Gives back what an allocation of `old_bytes` does not need any more.
  void shrink(int64_t offset, int64_t old_bytes, int64_t new_bytes);

  // Where the last free range begins: behind it nothing is allocated.
  [[nodiscard]] int64_t extent() const { return free_.back().offset; }
  [[nodiscard]] int64_t padded(int64_t n_bytes) const { return (n_bytes + alignment_ - 1) / alignment_ * alignment_; }
  bool operator==(const Arena&) const = default;

 private:
  static constexpr int64_t kEndless = INT64_MAX / 2;

  struct Range {
    int64_t offset = 0;
    int64_t n_bytes = 0;
    [[nodiscard]] int64_t end() const { return offset + n_bytes; }
    bool operator==(const Range&) const = default;
  };

  int64_t alignment_;
  std::vector<Range> free_;  // by offset; the last has no end
};

}  // namespace pshard
