#include "probe/copy_lane.hpp"

#include <algorithm>
#include <stdexcept>

#include "probe/measure.hpp"
#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int64_t kPageBytes = 4096;

}  // namespace

CopyLane::CopyLane(int64_t chunk_bytes, int64_t max_bytes, Copy copy, int64_t room_bytes) : chunk_bytes_(chunk_bytes), copy_(copy) {
  if (chunk_bytes < 1) throw std::invalid_argument("chunk_bytes is " + std::to_string(chunk_bytes) + ", must be positive");
  const int64_t wanted = std::max<int64_t>(1, (cold_bytes() / 2 + chunk_bytes - 1) / chunk_bytes);
  n_chunks_ = std::min(wanted, max_bytes / 2 / chunk_bytes);
  if (n_chunks_ < 1) {
    throw ProbeError("chunk_bytes is " + std::to_string(chunk_bytes) + ", two of them exceed the " + std::to_string(max_bytes) +
                     " bytes that a probe may take");
  }
  from_ = Buffer(n_chunks_ * chunk_bytes);
  n_rooms_ = std::clamp<int64_t>(room_bytes / chunk_bytes, 1, n_chunks_);
  to_ = Buffer(n_rooms_ * chunk_bytes);
  Random random(1);
  for (int64_t at = 0; at < std::min(from_.size(), kPageBytes); ++at) from_.data()[at] = static_cast<uint8_t>(random.next() >> 56);
  for (int64_t at = kPageBytes; at < from_.size(); at += kPageBytes) {
    std::memcpy(from_.data() + at, from_.data(), static_cast<std::size_t>(std::min(kPageBytes, from_.size() - at)));
    from_.data()[at] = static_cast<uint8_t>(at / kPageBytes);  // so that neighbours differ
  }
  std::memset(to_.data(), 0, static_cast<std::size_t>(to_.size()));
}

void CopyLane::start(int64_t n) {
  first_ = next_;
  for (int64_t i = std::max<int64_t>(0, n - n_rooms_); i < n; ++i) {  // in a room, the last copy stays
    const uint8_t* from = from_.data() + offset_of(first_ + i);
    uint8_t* to = to_.data() + room_of(first_ + i);
    for (int64_t at = 0; at < chunk_bytes_; at += kPageBytes) to[at] = static_cast<uint8_t>(~from[at]);
  }
}

void CopyLane::copy_next() {
  copy_(to_.data() + room_of(next_), from_.data() + offset_of(next_), static_cast<std::size_t>(chunk_bytes_));
  ++next_;
}

std::string CopyLane::fault() const {
  for (int64_t i = std::max(first_, next_ - n_rooms_); i < next_; ++i) {
    if (std::memcmp(to_.data() + room_of(i), from_.data() + offset_of(i), static_cast<std::size_t>(chunk_bytes_)) != 0) {
      return "chunk " + std::to_string(i - first_) + " of " + std::to_string(next_ - first_) + " was not copied";
    }
  }
  return next_ == first_ ? "nothing was copied" : "";
}

}  // namespace pshard
