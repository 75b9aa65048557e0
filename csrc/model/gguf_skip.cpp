#include "model/gguf_skip.hpp"

#include <stdexcept>
#include <string>

namespace pshard {

SkippedStrings skip_strings(std::span<const std::byte> data, int64_t count) {
  constexpr size_t kLengthBytes = 8;
  if (count < 0) throw std::invalid_argument("count is " + std::to_string(count) + "; it must not be negative");
  SkippedStrings skipped;
  size_t position = 0;
  while (skipped.n_strings < count && data.size() - position >= kLengthBytes) {
    uint64_t length = 0;
    for (size_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<uint64_t>(data[position + i]) << (8 * i);
    if (length > data.size() - position - kLengthBytes) break;
    position += kLengthBytes + static_cast<size_t>(length);
    ++skipped.n_strings;
  }
  skipped.n_bytes = static_cast<int64_t>(position);
  return skipped;
}

}  // namespace pshard
