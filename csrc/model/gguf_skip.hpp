// The one place where C++ looks at GGUF bytes: stepping over the strings of a vocabulary, of which a file has hundreds of thousands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pshard {

struct SkippedStrings {
  int64_t n_strings = 0;  // whole strings stepped over
  int64_t n_bytes = 0;    // bytes they take, lengths included
};

// Steps over at most `count` little-endian (uint64 length, bytes) strings that lie whole within `data`, and stops at the first that does
// not. Never reads outside `data`. O(strings). Throws std::invalid_argument for a negative count.
[[nodiscard]] SkippedStrings skip_strings(std::span<const std::byte> data, int64_t count);

}  // namespace pshard
