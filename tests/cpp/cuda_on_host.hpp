// CUDA's words for a host compiler, so that kernels of csrc/probe/*.cuh run on a CPU: every thread of a block is a fiber, which runs until
// it waits for its warp or its block. Threads take turns in either direction, so that a missing barrier shows as a wrong result; loads
// check that they are aligned and stay inside of arrays; lanes that meet each other at different places, or not at all, are an error. The
// matrix units do what the PTX ISA says of `ldmatrix` and `mma.m16n8k16`. Include before any .cuh file.
#pragma once

#if !defined(__CUDACC__)

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "probe/blocks.hpp"

#define __global__
#define __device__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

namespace pshard {
namespace {

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct Index {
  uint32_t x = 0, y = 0, z = 0;
};
Index threadIdx, blockIdx, blockDim, gridDim;

constexpr unsigned kLanes = 32;

// The block that runs: its fibers, and what the lanes of a warp show each other.
class HostBlock {
 public:
  enum class State { ready, at_warp, at_block, done };
  struct Shown {
    uint32_t words[8];
    const void* address;
  };

  HostBlock(unsigned n_threads, bool is_backwards, std::function<void()> body)
      : body_(std::move(body)), is_backwards_(is_backwards), fibers_(n_threads) {
    for (Fiber& fiber : fibers_) {
      fiber.stack.reset(new char[kStackBytes]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, &HostBlock::enter, 0);
    }
  }

  void run() {
    current = this;
    while (true) {
      bool has_run = false;
      for (unsigned i = 0; i < fibers_.size(); ++i) {
        const unsigned at = is_backwards_ ? static_cast<unsigned>(fibers_.size()) - 1 - i : i;
        if (fibers_[at].state != State::ready) continue;
        has_run = true;
        thread_ = at;
        threadIdx = {at, 0, 0};
        swapcontext(&scheduler_, &fibers_[at].context);
      }
      if (!fault_.empty()) throw std::logic_error(fault_);
      if (!has_run && !release()) return;
    }
  }

  // Waits for the warp and returns what each lane shows. A lane is at most one such place ahead of another, so two arrays suffice.
  const Shown* show(const Shown& mine) {
    Fiber& fiber = fibers_[thread_];
    Shown* shown = shown_[fiber.n_shown++ % 2].data() + thread_ / kLanes * kLanes;
    shown[thread_ % kLanes] = mine;
    wait(State::at_warp);
    return shown;
  }
  void wait(State state) {
    const unsigned mine = thread_;
    fibers_[mine].state = state;
    swapcontext(&fibers_[mine].context, &scheduler_);
  }
  [[nodiscard]] unsigned lane() const { return thread_ % kLanes; }

  struct AsyncCopy {
    void* to;
    const void* from;
    std::size_t n_bytes;
  };
  // Groups of copies of the thread that runs.
  std::deque<std::vector<AsyncCopy>>& async() { return fibers_[thread_].async; }
  void fail(const std::string& fault) {
    if (fault_.empty()) fault_ = fault;
  }

  static inline HostBlock* current = nullptr;

 private:
  static constexpr std::size_t kStackBytes = std::size_t{64} << 10;
  static constexpr unsigned kMostThreads = 1024;
  struct Fiber {
    ucontext_t context{};
    std::unique_ptr<char[]> stack;
    State state = State::ready;
    uint32_t n_shown = 0;
    std::deque<std::vector<AsyncCopy>> async{1};
  };

  static void enter() {
    current->body_();
    current->fibers_[current->thread_].state = State::done;
  }

  // Lets go on who has waited for all: whole warps, or else the whole block. False when all are done.
  bool release() {
    bool has_released = false;
    for (std::size_t first = 0; first < fibers_.size(); first += kLanes) {
      const auto warp = fibers_.begin() + static_cast<std::ptrdiff_t>(first);
      const auto waiting = std::count_if(warp, warp + kLanes, [](const Fiber& fiber) { return fiber.state == State::at_warp; });
      if (waiting != kLanes) continue;
      std::for_each(warp, warp + kLanes, [](Fiber& fiber) { fiber.state = State::ready; });
      has_released = true;
    }
    if (has_released) return true;
    const auto in = [&](State state) {
      return std::count_if(fibers_.begin(), fibers_.end(), [&](const Fiber& f) { return f.state == state; });
    };
    const auto n = static_cast<std::ptrdiff_t>(fibers_.size());
    if (in(State::done) == n) return false;
    if (in(State::at_block) != n) throw std::logic_error("threads wait at different places, or some have left");
    for (Fiber& fiber : fibers_) fiber.state = State::ready;
    return true;
  }

  std::function<void()> body_;
  bool is_backwards_;
  std::vector<Fiber> fibers_;
  std::vector<Shown> shown_[2] = {std::vector<Shown>(kMostThreads), std::vector<Shown>(kMostThreads)};
  ucontext_t scheduler_{};
  unsigned thread_ = 0;
  std::string fault_;
};

// ---- CUDA's own words

inline void __syncthreads() { HostBlock::current->wait(HostBlock::State::at_block); }
inline int atomicAdd(int* at, int value) { return std::exchange(*at, *at + value); }
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) { return std::exchange(*at, *at + value); }
inline int __float2int_rn(float value) { return static_cast<int>(std::lrint(value)); }
using std::isfinite;
using std::max;
using std::min;

// ---- and those of gpu_language.cuh

inline float to_float(uint16_t half) {
  static const std::vector<float> all = [] {
    std::vector<float> values;
    for (int bits = 0; bits < 1 << 16; ++bits) values.push_back(half_to_float(static_cast<uint16_t>(bits)));
    return values;
  }();
  return all[half];
}
inline uint16_t to_half(float value) { return float_to_half(value); }

// What lies behind an array: a load that takes any of it is an error.
class Behind {
 public:
  Behind(const void* begin, const void* end) : begin_(address(begin)), end_(address(end)) { all.push_back(this); }
  Behind(const Behind&) = delete;
  Behind& operator=(const Behind&) = delete;
  ~Behind() { all.erase(std::find(all.begin(), all.end(), this)); }

  static void check(const void* from, std::size_t n_bytes) {
    for (const Behind* behind : all) {
      if (address(from) < behind->end_ && address(from) + n_bytes > behind->begin_) HostBlock::current->fail("a load ends behind an array");
    }
  }

 private:
  static std::uintptr_t address(const void* at) { return reinterpret_cast<std::uintptr_t>(at); }
  static inline std::vector<const Behind*> all;
  std::uintptr_t begin_, end_;
};

template <typename T>
T load_aligned(const void* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % sizeof(T) != 0) HostBlock::current->fail("a load is not aligned to its size");
  Behind::check(from, sizeof(T));
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline uint4 load16(const void* from) { return load_aligned<uint4>(from); }
inline uint2 load8(const void* from) { return load_aligned<uint2>(from); }
inline uint32_t load4(const void* from) { return load_aligned<uint32_t>(from); }
inline uint16_t load2(const void* from) { return load_aligned<uint16_t>(from); }
inline uint8_t load1(const void* from) { return load_aligned<uint8_t>(from); }
inline void store16(void* to, uint4 value) {
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof value != 0) HostBlock::current->fail("a store is not aligned to its size");
  std::memcpy(to, &value, sizeof value);
}

inline float as_float(uint32_t word) { return std::bit_cast<float>(word); }
inline uint32_t pack_halves(float low, float high) { return to_half(low) | static_cast<uint32_t>(to_half(high)) << 16; }
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t order) {
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(both >> (8 * (order >> (4 * i) & 7U)) & 0xffU) << (8 * i);
  return word;
}
template <typename Operation>
uint32_t of_halves(uint32_t a, uint32_t b, uint32_t c, Operation operation) {
  const auto half = [&](int shift) {
    const auto part = [shift](uint32_t word) { return to_float(static_cast<uint16_t>(word >> shift & 0xffffU)); };
    return static_cast<uint32_t>(to_half(operation(part(a), part(b), part(c)))) << shift;
  };
  return half(0) | half(16);
}
inline uint32_t subtract_halves(uint32_t a, uint32_t b) {
  return of_halves(a, b, 0, [](float x, float y, float) { return x - y; });
}
inline uint32_t multiply_halves(uint32_t a, uint32_t b) {
  return of_halves(a, b, 0, [](float x, float y, float) { return x * y; });
}
inline uint32_t multiply_add_halves(uint32_t a, uint32_t b, uint32_t c) {
  return of_halves(a, b, c, [](float x, float y, float z) { return std::fma(x, y, z); });
}

// They arrive when the thread waits for them, and no sooner.
inline void copy_async(void* shared, const void* from, std::size_t n_bytes) {
  if (reinterpret_cast<std::uintptr_t>(shared) % n_bytes != 0 || reinterpret_cast<std::uintptr_t>(from) % n_bytes != 0) {
    HostBlock::current->fail("a copy is not aligned to its size");
  }
  Behind::check(from, n_bytes);
  HostBlock::current->async().back().push_back({shared, from, n_bytes});
}
inline void copy_async4(void* shared, const void* from) { copy_async(shared, from, 4); }
inline void copy_async16(void* shared, const void* from) { copy_async(shared, from, 16); }
inline void end_of_async_group() { HostBlock::current->async().emplace_back(); }
template <int n>
void wait_for_async_groups() {
  auto& groups = HostBlock::current->async();
  while (groups.size() > n + 1) {  // the last is still open
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.n_bytes);
    groups.pop_front();
  }
}

inline int dot4(uint32_t a, uint32_t b, int c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i & 0xffU) * static_cast<int8_t>(b >> i & 0xffU);
  return c;
}

inline float from_lane_xor(float value, int mask) {
  const auto* shown = HostBlock::current->show({{std::bit_cast<uint32_t>(value)}, nullptr});
  return std::bit_cast<float>(shown[HostBlock::current->lane() ^ static_cast<unsigned>(mask)].words[0]);
}

inline uint16_t element_of(const HostBlock::Shown& row, unsigned index) { return static_cast<const uint16_t*>(row.address)[index]; }

inline void load_matrices_as(uint32_t (&out)[4], const uint16_t* row, bool is_transposed) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) HostBlock::current->fail("a row of a matrix is not aligned to 16 bytes");
  const auto* shown = HostBlock::current->show({{}, row});
  const unsigned lane = HostBlock::current->lane();
  const unsigned g = lane / 4;
  const unsigned t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const auto* rows = shown + 8 * i;
    const uint16_t low = is_transposed ? element_of(rows[2 * t], g) : element_of(rows[g], 2 * t);
    const uint16_t high = is_transposed ? element_of(rows[2 * t + 1], g) : element_of(rows[g], 2 * t + 1);
    out[i] = low | static_cast<uint32_t>(high) << 16;
  }
}
inline void load_matrices(uint32_t (&out)[4], const uint16_t* row) { load_matrices_as(out, row, false); }
inline void load_matrices_transposed(uint32_t (&out)[4], const uint16_t* row) { load_matrices_as(out, row, true); }

inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto* shown = HostBlock::current->show({{a[0], a[1], a[2], a[3], b0, b1}, nullptr});
  const auto half = [](uint32_t word, unsigned index) { return to_float(static_cast<uint16_t>(word >> (16 * index) & 0xffffU)); };
  const unsigned lane = HostBlock::current->lane();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4;
    const unsigned column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned of_lane = k % 8 / 2;
      c[i] += half(shown[4 * row + of_lane].words[i / 2 + 2 * (k / 8)], k % 2) * half(shown[4 * column + of_lane].words[4 + k / 8], k % 2);
    }
  }
}

// ---- and a queue that runs what is launched at once

struct HostQueue {
  bool is_backwards = false;

  template <typename Grid, typename... Parameters, typename... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), Grid grid, int threads, Arguments... arguments) {
    if (threads % 32 != 0 || threads > 1024 || grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) {
      throw std::logic_error(std::string(name) + " is launched with a grid that no GPU takes");
    }
    gridDim = {static_cast<uint32_t>(grid.x), static_cast<uint32_t>(grid.y), static_cast<uint32_t>(grid.z)};
    blockDim = {static_cast<uint32_t>(threads), 1, 1};
    for (uint32_t z = 0; z < gridDim.z; ++z) {
      for (uint32_t y = 0; y < gridDim.y; ++y) {
        for (uint32_t x = 0; x < gridDim.x; ++x) {
          blockIdx = {x, y, z};
          HostBlock(blockDim.x, is_backwards, [&] { kernel(arguments...); }).run();
        }
      }
    }
  }
};

}  // namespace
}  // namespace pshard

#endif
