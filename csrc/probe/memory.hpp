// Bytes that probes work on: aligned, untouched until a thread writes to them, and how many of them the caches hold.
#pragma once

#include <cstdint>
#include <memory>

namespace pshard {

// Aligned to a page. Throws ProbeError where the machine has not that much.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n_bytes);

  [[nodiscard]] uint8_t* data() const { return data_.get(); }
  [[nodiscard]] int64_t size() const { return size_; }
  template <typename T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(uint8_t* data) const;
  };
  std::unique_ptr<uint8_t, Free> data_;
  int64_t size_ = 0;
};

// Of the whole machine, as the operating system tells; where it does not, a figure that no desktop CPU exceeds.
[[nodiscard]] int64_t last_level_cache_bytes();

// Bytes that must lie between two reads of the same byte so that no cache still holds it.
[[nodiscard]] int64_t cold_bytes();

}  // namespace pshard
