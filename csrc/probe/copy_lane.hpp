// Copies from memory to memory in chunks, through arrays that no cache holds.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "probe/copy_work.hpp"
#include "probe/memory.hpp"

namespace pshard {

class CopyLane final : public CopyWork {
 public:
  using Copy = void* (*)(void* to, const void* from, std::size_t n_bytes);

  // Throws ProbeError where `max_bytes` cannot hold two arrays of one chunk. Of the array that is written no more than `room_bytes` are
  // used, in turn, as by copies that go through a slot: these may stay in a cache.
  CopyLane(int64_t chunk_bytes, int64_t max_bytes, Copy copy = std::memcpy, int64_t room_bytes = std::numeric_limits<int64_t>::max());

  [[nodiscard]] int64_t chunk_bytes() const override { return chunk_bytes_; }
  [[nodiscard]] bool is_cold() const override { return 2 * n_chunks_ * chunk_bytes_ >= cold_bytes(); }

  void start(int64_t n) override;
  void copy_next() override;
  [[nodiscard]] std::string fault() const override;

 private:
  [[nodiscard]] int64_t offset_of(int64_t index) const { return index % n_chunks_ * chunk_bytes_; }
  [[nodiscard]] int64_t room_of(int64_t index) const { return index % n_rooms_ * chunk_bytes_; }

  int64_t chunk_bytes_;
  Copy copy_;
  int64_t n_chunks_;  // of the array that is read
  int64_t n_rooms_;   // of the array that is written
  Buffer from_;
  Buffer to_;
  int64_t first_ = 0;  // since start()
  int64_t next_ = 0;
};

}  // namespace pshard
