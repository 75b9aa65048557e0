// How host memory that is not page-locked is copied from and to, so that whoever queues a copy never waits for it: through memory that is,
// by calls that a thread of the driver makes when the stream gets there.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "stream/backend.hpp"
#include "stream/work_queue.hpp"

namespace pshard {

// Throws StreamError where `error` is one.
void require_success(cudaError_t error, const char* what);

// Work that the driver calls when a stream gets there. It may not call CUDA; what it throws is the failure of the pass.
class Calls {
 public:
  explicit Calls(Failure& failure) : failure_(failure) {}
  void queue(cudaStream_t stream, std::function<void()> work);
  // Those that will never come, too: a stream that failed drops what it was given. Requires that none is being made.
  void forget() { calls_.clear(); }

 private:
  struct Call {
    Failure* failure;
    std::function<void()> work;
  };
  static void CUDART_CB make(void* given);

  Failure& failure_;
  std::deque<Call> calls_;
};

// Of one stream, which it holds up while the bytes pass.
class Bounce {
 public:
  void open();
  void close();
  void up(cudaStream_t stream, Calls& calls, uint8_t* to, const uint8_t* from, int64_t n_bytes);
  void down(cudaStream_t stream, Calls& calls, uint8_t* to, const uint8_t* from, int64_t n_bytes);
  // The same to memory that is made when the stream gets there, and shown to `look`.
  void show(cudaStream_t stream, Calls& calls, const uint8_t* from, int64_t n_bytes, std::function<void(const uint8_t*)> look);

 private:
  uint8_t* bytes_ = nullptr;
};

// Of a lane: chunks are filled by a stream of its own while the lane empties those before.
class Ring {
 public:
  void open();
  void close();
  void up(cudaStream_t lane, Calls& calls, uint8_t* to, const uint8_t* from, int64_t n_bytes);
  [[nodiscard]] cudaStream_t filling() const { return filling_; }

 private:
  static constexpr int kChunks = 4;
  uint8_t* bytes_ = nullptr;
  cudaStream_t filling_ = nullptr;
  std::array<cudaEvent_t, kChunks> filled_{}, emptied_{};
  int64_t next_ = 0;
};

// Page-locked copies of small arrays, such as routes, that are made when a pass is queued and live until it is over.
class Kept {
 public:
  [[nodiscard]] const uint8_t* copy_of(const void* bytes, int64_t n_bytes);
  void forget();  // all; the memory is used again
  void close();

 private:
  struct Block {
    uint8_t* bytes;
    int64_t n_bytes;
  };
  std::vector<Block> blocks_;
  size_t block_ = 0;
  int64_t used_ = 0;
};

}  // namespace pshard
