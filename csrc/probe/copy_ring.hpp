// Memory of the host and as much of a GPU's, between which chunks are copied round and round. Both hold the same pattern, by which what
// arrived is checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "probe/gpu.hpp"
#include "probe/memory.hpp"

namespace pshard {

enum class Direction : uint8_t { up, down };

struct CopyShape {
  Direction direction = Direction::up;
  HostMemory memory = HostMemory::locked;
  int64_t chunk_bytes = 0;    // of one copy, a multiple of 16
  bool is_scattered = false;  // chunks from all over the ring, as slices of experts lie; otherwise one after the other
};

class CopyRing {
 public:
  // Throws ProbeError where the driver does not page-lock so much.
  CopyRing(Gpu& gpu, HostMemory memory, int64_t n_bytes);
  ~CopyRing();
  CopyRing(const CopyRing&) = delete;
  CopyRing& operator=(const CopyRing&) = delete;

  [[nodiscard]] int64_t size() const { return device_.size(); }
  [[nodiscard]] HostMemory memory() const { return memory_; }

  // Before copies of a shape; of another size than the memory's the last chunk is left out.
  void begin(const CopyShape& shape);
  [[nodiscard]] int64_t n_chunks() const { return static_cast<int64_t>(order_.size()); }

  // Copies are numbered on and on. spoil() makes the next differ where they will arrive, fault() says which of the last did not.
  void queue(GpuLane lane, int64_t index);
  void spoil(int64_t first, int64_t n);
  [[nodiscard]] std::string fault(int64_t first, int64_t n);

 private:
  [[nodiscard]] int64_t offset_of(int64_t index) const;

  Gpu& gpu_;
  HostMemory memory_;
  uint8_t* locked_ = nullptr;
  Buffer pageable_;
  uint8_t* host_ = nullptr;
  GpuBytes device_;
  CopyShape shape_;
  std::vector<int64_t> order_;  // offsets
  bool is_filled_ = false;      // both sides hold the pattern everywhere
};

}  // namespace pshard
