#include "stream/host_backend.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace pshard {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;
constexpr int64_t kRingChunks = 4;
constexpr auto kPoll = std::chrono::milliseconds(10);

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n_bytes) { std::memcpy(to, from, static_cast<size_t>(n_bytes)); }

Buffer reserve(int64_t n_bytes, size_t device) {
  try {
    return Buffer(n_bytes);
  } catch (const ProbeError&) {
    throw StreamError("the arena of " + std::to_string(n_bytes) + " bytes for GPU " + std::to_string(device) +
                      " was refused by the system; plan for a smaller budget (--vram), or close programs");
  }
}

}  // namespace

HostBackend::HostBackend(const HostBackendOptions& options) : kernels_(kernels(options.path)), page_lock_bytes_(options.page_lock_bytes) {
  parts_.push_back(std::make_unique<Part>());
  parts_.back()->queues.push_back(std::make_unique<WorkQueue>(options.host_cpus, failure_));
  for (size_t i = 0; i < options.devices.size(); ++i) {
    const HostDevice& device = options.devices[i];
    if (device.copy_cpus.empty()) throw std::invalid_argument("device " + std::to_string(i) + " has no CPU for its copies");
    parts_.push_back(std::make_unique<Part>());
    Part& part = *parts_.back();
    part.arena = reserve(device.arena_bytes, i);
    part.ring = Buffer(kRingChunks * kChunkBytes);
    part.queues.push_back(std::make_unique<WorkQueue>(device.compute_cpus, failure_));
    for (size_t lane = 0; lane + 1 < kStreams; ++lane) {
      part.queues.push_back(std::make_unique<WorkQueue>(std::vector<int>{device.copy_cpus[lane % device.copy_cpus.size()]}, failure_));
    }
  }
}

HostBackend::~HostBackend() {
  for (const auto& part : parts_) part->queues.clear();  // before what they work on
  for (const auto& [bytes, n_bytes] : locked_) munlock(bytes, static_cast<size_t>(n_bytes));
}

HostBackend::Part& HostBackend::part(Device device) {
  if (index(device) >= parts_.size()) {
    throw std::invalid_argument("GPU " + std::to_string(index(device) - 1) + " of " + std::to_string(parts_.size() - 1) +
                                " is asked for; make the backend with as many as the schedule names");
  }
  return *parts_[index(device)];
}

WorkQueue& HostBackend::queue_of(Queue queue) { return *part(queue.device).queues.at(static_cast<size_t>(queue.stream)); }

uint8_t* HostBackend::arena(Device device) { return part(device).arena.data(); }

int64_t HostBackend::arena_bytes(Device device) const { return index(device) < parts_.size() ? parts_[index(device)]->arena.size() : 0; }

bool HostBackend::lock(const uint8_t* bytes, int64_t n_bytes) {
  int64_t locked = n_bytes;
  for (const auto& [start, size] : locked_) locked += size;
  if (locked > page_lock_bytes_ || mlock(bytes, static_cast<size_t>(n_bytes)) != 0) return false;
  locked_[bytes] = n_bytes;
  return true;
}

void HostBackend::unlock_all() {
  for (const auto& [bytes, n_bytes] : locked_) munlock(bytes, static_cast<size_t>(n_bytes));
  locked_.clear();
}

bool HostBackend::is_locked(const uint8_t* bytes, int64_t n_bytes) const {
  // What was locked in pieces lies in several that follow each other.
  for (const uint8_t* const end = bytes + n_bytes; bytes < end;) {
    auto piece = locked_.upper_bound(bytes);
    if (piece == locked_.begin()) return false;
    --piece;
    if (piece->first + piece->second <= bytes) return false;
    bytes = piece->first + piece->second;
  }
  return true;
}

void HostBackend::copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) {
  Part& device = part(queue.device);
  const bool is_lane = queue.stream == Stream::lane_a || queue.stream == Stream::lane_b;
  std::mutex* engine = is_lane ? &device.up : queue.stream == Stream::down ? &device.down : nullptr;
  const bool staged = is_lane && !is_locked(from, n_bytes);
  uint8_t* ring = device.ring.data();
  queue_of(queue).push({.alone = [=] {
    const std::unique_lock turn = engine != nullptr ? std::unique_lock(*engine) : std::unique_lock<std::mutex>();
    if (!staged) {
      copy_bytes(to, from, n_bytes);
      return;
    }
    for (int64_t at = 0, chunk = 0; at < n_bytes; at += kChunkBytes, ++chunk) {
      uint8_t* slot = ring + chunk % kRingChunks * kChunkBytes;
      const int64_t n = std::min(kChunkBytes, n_bytes - at);
      copy_bytes(slot, from + at, n);
      copy_bytes(to + at, slot, n);
    }
  }});
}

void HostBackend::multiply(Queue queue, const Product& product) {
  WorkQueue& work = queue_of(queue);
  auto& known =
      part(queue.device).products[{product.type, product.n, product.k, product.m, product.routes != nullptr, product.has_own_rows}];
  if (!known) known = std::make_unique<HostProduct>(kernels_, product, work.size());
  HostProduct* prepared = known.get();
  work.push({.alone = [=] { prepared->start(product); }, .shared = [=](int thread) { prepared->run(thread); }});
}

Attention& HostBackend::attention_of(Queue queue, const AttentionShape& shape) {
  auto& known = part(queue.device).attentions[{shape.n_heads, shape.n_kv_heads, shape.head_size, shape.depth, shape.batch}];
  if (!known) known = std::make_unique<Attention>(kernels_, shape, queue_of(queue).size());
  return *known;
}

void HostBackend::attend(Queue queue, const AttentionWork& work) {
  Attention& attention = attention_of(queue, work.shape);
  const uint8_t* cache = work.cache;
  queue_of(queue).push(
      {.alone = [&attention, cache] { attention.start(cache); }, .shared = [&attention](int thread) { attention.run(thread); }});
}

void HostBackend::check_attention(Queue queue, const AttentionWork& work) {
  Attention& attention = attention_of(queue, work.shape);
  queue_of(queue).push({.alone = [&attention] {
    const std::string fault = attention.fault();
    attention.spoil_output();
    if (!fault.empty()) throw StreamError("attention: " + fault);
  }});
}

void HostBackend::inspect(Queue queue, const uint8_t* bytes, int64_t, std::function<void(const uint8_t*)> look) {
  queue_of(queue).push({.alone = [bytes, look = std::move(look)] { look(bytes); }});
}

Event HostBackend::record(Queue queue) {
  events_.push_back(std::make_unique<Signal>());
  Signal* event = events_.back().get();
  queue_of(queue).push({.alone = [event] { event->set(now()); }, .always = true});
  return static_cast<Event>(events_.size()) - 1;
}

void HostBackend::wait(Queue queue, Event event) {
  const Signal* signal = events_.at(static_cast<size_t>(event)).get();
  queue_of(queue).push({.alone = [signal] { signal->wait(); }, .always = true});
}

// Queues work in order, so nobody uses an event any more once each has come to its end.
void HostBackend::finish(const std::function<void()>& poll) {
  for (const auto& part : parts_) {
    for (const auto& queue : part->queues) {
      {
        const std::lock_guard lock(end_mutex_);
        ++n_running_;
      }
      queue->push({.alone =
                       [this] {
                         const std::lock_guard lock(end_mutex_);
                         if (--n_running_ == 0) end_.notify_all();
                       },
                   .always = true});
    }
  }
  std::exception_ptr interruption;
  const auto look_up = [&] {
    if (!poll || interruption) return;
    try {
      poll();
    } catch (...) {
      interruption = std::current_exception();
      give_up("interrupted");
    }
  };
  const auto is_done = [&] {
    std::unique_lock lock(end_mutex_);
    return end_.wait_for(lock, kPoll, [&] { return n_running_ == 0; });
  };
  do {
    look_up();
  } while (!is_done());
  const std::string failure = failure_.take();
  if (interruption) std::rethrow_exception(interruption);
  if (!failure.empty()) throw StreamError(failure);
}

bool HostBackend::has_come(Event event) { return events_.at(static_cast<size_t>(event))->is_set(); }

double HostBackend::seconds(Event event) { return events_.at(static_cast<size_t>(event))->seconds(); }

void HostBackend::forget_events() { events_.clear(); }

}  // namespace pshard
