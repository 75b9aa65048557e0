// Copies that another probe works beside: from memory to memory, or to a GPU.
#pragma once

#include <cstdint>
#include <string>

namespace pshard {

class CopyWork {
 public:
  virtual ~CopyWork() = default;

  [[nodiscard]] virtual int64_t chunk_bytes() const = 0;  // that copy_next() moves
  [[nodiscard]] virtual bool is_cold() const = 0;         // no copy finds in a cache what it reads

  // Makes the next `n` chunks differ from what they will be copied from, so that a copy that moves nothing is found.
  virtual void start(int64_t n) = 0;
  virtual void copy_next() = 0;

  // What is wrong with the chunks that were copied since start().
  [[nodiscard]] virtual std::string fault() const = 0;
};

}  // namespace pshard
