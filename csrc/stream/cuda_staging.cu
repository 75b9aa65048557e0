#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "stream/cuda_staging.cuh"

namespace pshard {
namespace {

constexpr int64_t kBounceBytes = int64_t{1} << 20;
constexpr int64_t kChunkBytes = int64_t{4} << 20;
constexpr int64_t kBlockBytes = int64_t{1} << 20;

uint8_t* locked(int64_t n_bytes, const char* what) {
  uint8_t* bytes = nullptr;
  require_success(cudaMallocHost(&bytes, static_cast<size_t>(n_bytes)), what);
  return bytes;
}

// Calls `use` for one piece after the other.
template <typename Use>
void in_pieces(int64_t n_bytes, int64_t piece_bytes, Use use) {
  for (int64_t at = 0; at < n_bytes; at += piece_bytes) use(at, static_cast<size_t>(std::min(piece_bytes, n_bytes - at)));
}

}  // namespace

void require_success(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // told here, so no kernel that comes later is blamed for it
  throw StreamError(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

void CUDART_CB Calls::make(void* given) {
  auto* const call = static_cast<Call*>(given);
  const auto work = std::exchange(call->work, nullptr);
  if (call->failure->is_set()) return;  // the pass is worth nothing any more
  try {
    work();
  } catch (const std::exception& error) {
    call->failure->set(error.what());
  }
}

void Calls::queue(cudaStream_t stream, std::function<void()> work) {
  calls_.push_back({&failure_, std::move(work)});
  require_success(cudaLaunchHostFunc(stream, make, &calls_.back()), "queueing a call");
}

void Bounce::open() { bytes_ = locked(kBounceBytes, "locking memory to stage through"); }

void Bounce::close() { cudaFreeHost(bytes_); }

void Bounce::up(cudaStream_t stream, Calls& calls, uint8_t* to, const uint8_t* from, int64_t n_bytes) {
  in_pieces(n_bytes, kBounceBytes, [&](int64_t at, size_t n) {
    calls.queue(stream, [through = bytes_, from = from + at, n] { std::memcpy(through, from, n); });
    require_success(cudaMemcpyAsync(to + at, bytes_, n, cudaMemcpyHostToDevice, stream), "queueing a copy");
  });
}

void Bounce::down(cudaStream_t stream, Calls& calls, uint8_t* to, const uint8_t* from, int64_t n_bytes) {
  in_pieces(n_bytes, kBounceBytes, [&](int64_t at, size_t n) {
    require_success(cudaMemcpyAsync(bytes_, from + at, n, cudaMemcpyDeviceToHost, stream), "queueing a copy");
    calls.queue(stream, [through = bytes_, to = to + at, n] { std::memcpy(to, through, n); });
  });
}

void Bounce::show(cudaStream_t stream, Calls& calls, const uint8_t* from, int64_t n_bytes, std::function<void(const uint8_t*)> look) {
  const auto shown = std::make_shared<std::vector<uint8_t>>();
  in_pieces(n_bytes, kBounceBytes, [&](int64_t at, size_t n) {
    require_success(cudaMemcpyAsync(bytes_, from + at, n, cudaMemcpyDeviceToHost, stream), "copying what is checked");
    calls.queue(stream, [shown, through = bytes_, at, n, n_bytes] {
      shown->resize(static_cast<size_t>(n_bytes));
      std::memcpy(shown->data() + at, through, n);
    });
  });
  calls.queue(stream, [shown, look = std::move(look)] { look(shown->data()); });
}

void Ring::open() {
  bytes_ = locked(kChunkBytes * kChunks, "locking a ring to stage through");
  require_success(cudaStreamCreateWithFlags(&filling_, cudaStreamNonBlocking), "making a stream");
  for (auto* events : {&filled_, &emptied_}) {
    for (cudaEvent_t& event : *events) require_success(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  }
}

void Ring::close() {
  for (auto* events : {&filled_, &emptied_}) {
    for (const cudaEvent_t event : *events) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }
  if (filling_ != nullptr) cudaStreamDestroy(filling_);
  cudaFreeHost(bytes_);
}

void Ring::up(cudaStream_t lane, Calls& calls, uint8_t* to, const uint8_t* from, int64_t n_bytes) {
  // What the lane waits for, filling waits for: nothing of a shard is read before its turn.
  const cudaEvent_t turn = emptied_[static_cast<size_t>(next_ % kChunks)];
  require_success(cudaEventRecord(turn, lane), "recording an event");
  require_success(cudaStreamWaitEvent(filling_, turn, 0), "waiting for an event");
  in_pieces(n_bytes, kChunkBytes, [&](int64_t at, size_t n) {
    const auto slot = static_cast<size_t>(next_++ % kChunks);
    uint8_t* chunk = bytes_ + static_cast<int64_t>(slot) * kChunkBytes;
    require_success(cudaStreamWaitEvent(filling_, emptied_[slot], 0), "waiting for an event");
    calls.queue(filling_, [chunk, from = from + at, n] { std::memcpy(chunk, from, n); });
    require_success(cudaEventRecord(filled_[slot], filling_), "recording an event");
    require_success(cudaStreamWaitEvent(lane, filled_[slot], 0), "waiting for an event");
    require_success(cudaMemcpyAsync(to + at, chunk, n, cudaMemcpyHostToDevice, lane), "queueing a copy");
    require_success(cudaEventRecord(emptied_[slot], lane), "recording an event");
  });
}

const uint8_t* Kept::copy_of(const void* bytes, int64_t n_bytes) {
  while (block_ < blocks_.size() && blocks_[block_].n_bytes - used_ < n_bytes) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    const int64_t size = std::max(kBlockBytes, n_bytes);
    blocks_.push_back({locked(size, "locking memory for routes"), size});
  }
  uint8_t* copy = blocks_[block_].bytes + used_;
  std::memcpy(copy, bytes, static_cast<size_t>(n_bytes));
  used_ += n_bytes;
  return copy;
}

void Kept::forget() {
  block_ = 0;
  used_ = 0;
}

void Kept::close() {
  for (const Block& block : blocks_) cudaFreeHost(block.bytes);
  blocks_.clear();
  forget();
}

}  // namespace pshard
