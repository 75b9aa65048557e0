#include "probe/copy_ring.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "probe/measure.hpp"
#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int64_t kWordBytes = 8;
constexpr int64_t kPageBytes = 4096;
constexpr uint8_t kSpoilt = 0xa5;

uint64_t word_at(int64_t index) { return static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15ULL + 1; }

void spoil_word(uint8_t* to, int64_t offset) {
  const uint64_t word = ~word_at(offset / kWordBytes);
  std::memcpy(to, &word, sizeof word);
}

// The first word that is not the pattern's, -1 if all are.
int64_t first_wrong(const uint8_t* bytes, int64_t offset, int64_t n_bytes) {
  for (int64_t at = 0; at < n_bytes; at += kWordBytes) {
    uint64_t word;
    std::memcpy(&word, bytes + at, sizeof word);
    if (word != word_at((offset + at) / kWordBytes)) return at;
  }
  return -1;
}

}  // namespace

CopyRing::CopyRing(Gpu& gpu, HostMemory memory, int64_t n_bytes) : gpu_(gpu), memory_(memory), device_(gpu, n_bytes) {
  if (memory == HostMemory::locked) {
    locked_ = gpu.lock(n_bytes);
    if (locked_ == nullptr) throw ProbeError("the driver does not page-lock " + std::to_string(n_bytes >> 20) + " MiB of host memory");
    host_ = locked_;
  } else {
    pageable_ = Buffer(n_bytes);
    host_ = pageable_.data();
  }
}

CopyRing::~CopyRing() {
  if (locked_ != nullptr) gpu_.unlock(locked_);
}

void CopyRing::begin(const CopyShape& shape) {
  if (shape.chunk_bytes < 16 || shape.chunk_bytes % 16 != 0) {
    throw std::invalid_argument("chunk_bytes is " + std::to_string(shape.chunk_bytes) + ", must be a positive multiple of 16");
  }
  if (shape.chunk_bytes > size()) {
    throw ProbeError("chunk_bytes is " + std::to_string(shape.chunk_bytes) + ", the probe may take " + std::to_string(size()));
  }
  shape_ = shape;
  order_.clear();
  for (int64_t at = 0; at + shape.chunk_bytes <= size(); at += shape.chunk_bytes) order_.push_back(at);
  Random random(3);
  for (std::size_t i = order_.size(); shape.is_scattered && i > 1; --i) std::swap(order_[i - 1], order_[random.next() % i]);
  if (is_filled_) return;
  for (int64_t at = 0; at + kWordBytes <= size(); at += kWordBytes) {
    const uint64_t word = word_at(at / kWordBytes);
    std::memcpy(host_ + at, &word, sizeof word);
  }
  gpu_.copy(GpuLane::up, device_.data(), host_, size());
  gpu_.synchronise(GpuLane::up);
  is_filled_ = true;
}

int64_t CopyRing::offset_of(int64_t index) const { return order_[static_cast<std::size_t>(index % n_chunks())]; }

void CopyRing::queue(GpuLane lane, int64_t index) {
  const int64_t offset = offset_of(index);
  if (shape_.direction == Direction::up) {
    gpu_.copy(lane, device_.data() + offset, host_ + offset, shape_.chunk_bytes);
  } else {
    gpu_.copy(lane, host_ + offset, device_.data() + offset, shape_.chunk_bytes);
  }
}

void CopyRing::spoil(int64_t first, int64_t n) {
  is_filled_ = false;  // until it is known that the copies mended it
  for (int64_t i = first; i < first + std::min(n, n_chunks()); ++i) {
    const int64_t offset = offset_of(i);
    if (shape_.direction == Direction::up) {
      gpu_.fill(GpuLane::up, device_.data() + offset, kSpoilt, shape_.chunk_bytes);
      continue;
    }
    for (int64_t at = 0; at < shape_.chunk_bytes; at += kPageBytes) spoil_word(host_ + offset + at, offset + at);
    spoil_word(host_ + offset + shape_.chunk_bytes - kWordBytes, offset + shape_.chunk_bytes - kWordBytes);
  }
  gpu_.synchronise(GpuLane::up);
}

std::string CopyRing::fault(int64_t first, int64_t n) {
  std::vector<uint8_t> arrived(shape_.direction == Direction::up ? static_cast<std::size_t>(shape_.chunk_bytes) : 0);
  for (int64_t i = first; i < first + std::min(n, n_chunks()); ++i) {
    const int64_t offset = offset_of(i);
    const uint8_t* bytes = host_ + offset;
    if (shape_.direction == Direction::up) {
      gpu_.copy(GpuLane::down, arrived.data(), device_.data() + offset, shape_.chunk_bytes);
      gpu_.synchronise(GpuLane::down);
      bytes = arrived.data();
    }
    if (const int64_t at = first_wrong(bytes, offset, shape_.chunk_bytes); at >= 0) {
      return "copy " + std::to_string(i - first) + " of " + std::to_string(n) + " did not arrive whole: byte " + std::to_string(at) +
             " of its " + std::to_string(shape_.chunk_bytes) + " is wrong";
    }
  }
  is_filled_ = true;
  return n == 0 ? "nothing was copied" : "";
}

}  // namespace pshard
