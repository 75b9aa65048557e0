#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "probe/gpu_kernels.hpp"
#include "probe/random.hpp"
#include "stream/cuda_backend.hpp"
#include "stream/host_backend.hpp"

namespace pshard {
namespace {

constexpr int64_t kChunkBytes = int64_t{4} << 20;  // that unlocked memory is staged in
constexpr int kRingChunks = 4;
constexpr int64_t kAlignment = 256;
constexpr auto kLook = std::chrono::microseconds(200);
constexpr int kLooksPerPoll = 50;
constexpr int kSamples = 8;
constexpr double kTolerance = 0.02;  // of the largest value: queries are rounded to F16

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // told here, so no kernel that comes later is blamed for it
  throw StreamError(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

int64_t aligned(int64_t n_bytes) { return (n_bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t ids_bytes(const Product& product) { return product.routes == nullptr ? 0 : aligned(product.m * 4); }

GpuExperts experts_of(const Product& product) {
  return {product.type,        product.n, product.k, product.n_expert, product.routes->n_used, product.m / product.routes->n_used,
          product.has_own_rows};
}

// What a stream calls on a thread of the driver; it owns what it was given.
void CUDART_CB call(void* work) {
  const std::unique_ptr<std::function<void()>> function(static_cast<std::function<void()>*>(work));
  (*function)();
}

void call_in(cudaStream_t stream, std::function<void()> work) {
  auto owned = std::make_unique<std::function<void()>>(std::move(work));
  require(cudaLaunchHostFunc(stream, call, owned.get()), "queueing a call");
  static_cast<void>(owned.release());
}

// Memory of the host that unlocked memory is copied through: filled on a stream of its own while the lane empties what came before.
struct Ring {
  uint8_t* bytes = nullptr;
  cudaStream_t filling = nullptr;
  std::array<cudaEvent_t, kRingChunks> filled{}, emptied{};
  int64_t next = 0;
};

struct Gpu {
  int number = 0;
  uint8_t* arena = nullptr;
  int64_t arena_bytes = 0;
  uint8_t* scratch = nullptr;
  std::array<cudaStream_t, kStreams> streams{};
  std::array<Ring, 2> rings;  // of the two lanes
  cudaEvent_t base = nullptr;
  double base_seconds = 0.0;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const CudaBackendOptions& options)
      : host_(HostBackendOptions{options.host_cpus, {}, 0, options.path}), page_lock_bytes_(options.page_lock_bytes) {
    int n_devices = 0;
    require(cudaGetDeviceCount(&n_devices), "looking for GPUs");
    if (static_cast<size_t>(n_devices) < options.arena_bytes.size()) {
      throw StreamError(std::to_string(options.arena_bytes.size()) + " GPUs are asked for, " + std::to_string(n_devices) + " are here");
    }
    try {
      for (size_t i = 0; i < options.arena_bytes.size(); ++i) open(static_cast<int>(i), options.arena_bytes[i]);
    } catch (...) {
      close();
      throw;
    }
  }
  ~CudaBackend() override { close(); }

  uint8_t* arena(Device device) override { return gpu(device).arena; }
  int64_t arena_bytes(Device device) const override {
    const size_t at = index(device) - 1;
    return is_gpu(device) && at < gpus_.size() ? gpus_[at].arena_bytes : 0;
  }
  int64_t scratch_bytes(const Product& product) const override {
    if (product.routes != nullptr) return ids_bytes(product) + pshard::scratch_bytes(experts_of(product));
    return pshard::scratch_bytes(GpuProduct{product.type, product.n, product.k, product.m});
  }
  int64_t scratch_bytes(const AttentionShape& shape) const override { return gpu_scratch_bytes(shape); }
  void use_scratch(Device device, uint8_t* scratch) override { gpu(device).scratch = scratch; }

  // Whole pages, as drivers lock them; neighbours share pages, so what is locked already is left out.
  bool lock(const uint8_t* bytes, int64_t n_bytes) override {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    auto begin = reinterpret_cast<uintptr_t>(bytes) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(bytes) + static_cast<uintptr_t>(n_bytes) + page - 1) / page * page;
    auto after = locked_.upper_bound(begin);
    if (after != locked_.begin()) begin = std::max(begin, std::prev(after)->second);
    if (begin >= end) return true;
    const auto n = static_cast<int64_t>(end - begin);
    if ((after != locked_.end() && after->first < end) || locked_bytes_ + n > page_lock_bytes_) return false;
    auto* start = reinterpret_cast<void*>(begin);  // NOLINT: pages are numbers here
    if (cudaHostRegister(start, static_cast<size_t>(n), cudaHostRegisterDefault) != cudaSuccess &&
        cudaHostRegister(start, static_cast<size_t>(n), cudaHostRegisterReadOnly) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // a refusal is no error of what comes next
      return false;
    }
    static_cast<void>(cudaGetLastError());
    locked_[begin] = end;
    locked_bytes_ += n;
    return true;
  }
  void unlock_all() override {
    for (const auto& [begin, end] : locked_) cudaHostUnregister(reinterpret_cast<void*>(begin));
    static_cast<void>(cudaGetLastError());
    locked_.clear();
    locked_bytes_ = 0;
  }

  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    if (!is_gpu(queue.device)) return host_.copy(queue, to, from, n_bytes);
    const cudaStream_t stream = use(queue);
    const bool is_lane = queue.stream == Stream::lane_a || queue.stream == Stream::lane_b;
    const bool is_staged = is_lane && !is_in_arena(from);
    // One call takes what lies in one locked range or in none, at both ends.
    while (n_bytes > 0) {
      const int64_t n = std::min({n_bytes, extent(from), extent(to)});
      if (is_staged && locked_from(from) == 0) {
        stage(queue, to, from, n);
      } else {
        require(cudaMemcpyAsync(to, from, static_cast<size_t>(n), cudaMemcpyDefault, stream), "queueing a copy");
      }
      to += n;
      from += n;
      n_bytes -= n;
    }
  }

  void multiply(Queue queue, const Product& product) override {
    if (!is_gpu(queue.device)) return host_.multiply(queue, product);
    const cudaStream_t stream = use(queue);
    uint8_t* scratch = gpu(queue.device).scratch;
    launch([&] {
      if (product.routes == nullptr) {
        pshard::multiply(GpuProduct{product.type, product.n, product.k, product.m}, product.weights, product.x, product.y, scratch, stream);
        return;
      }
      const auto& ids = product.routes->expert;
      require(cudaMemcpyAsync(scratch, ids.data(), ids.size() * sizeof(int32_t), cudaMemcpyHostToDevice, stream), "copying routes");
      pshard::multiply_experts(experts_of(product), product.weights, reinterpret_cast<const int32_t*>(scratch), product.x, product.y,
                               scratch + ids_bytes(product), stream);
    });
  }

  void attend(Queue queue, const AttentionWork& work) override {
    if (!is_gpu(queue.device)) return host_.attend(queue, work);
    const cudaStream_t stream = use(queue);
    launch([&] { pshard::attend(work.shape, false, work.x, work.cache, values_of(work), work.y, gpu(queue.device).scratch, stream); });
  }

  void inspect(Queue queue, const uint8_t* bytes, int64_t n_bytes, std::function<void(const uint8_t*)> look) override {
    if (!is_gpu(queue.device)) return host_.inspect(queue, bytes, n_bytes, std::move(look));
    const cudaStream_t stream = use(queue);
    const auto shown = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(n_bytes));
    require(cudaMemcpyAsync(shown->data(), bytes, shown->size(), cudaMemcpyDeviceToHost, stream), "copying what is checked");
    call_in(stream, [this, shown, look = std::move(look)] {
      try {
        look(shown->data());
      } catch (const std::exception& error) {
        failure_.set(error.what());
      }
    });
  }

  void check_attention(Queue queue, const AttentionWork& work) override {
    if (!is_gpu(queue.device)) return host_.check_attention(queue, work);
    const AttentionShape& shape = work.shape;
    const int64_t cache_bytes = 4 * shape.depth * shape.n_kv_heads * shape.head_size;
    const int64_t row_bytes = 4 * shape.batch * shape.n_heads * shape.head_size;
    const auto cache = std::make_shared<std::vector<uint8_t>>();
    const auto x = std::make_shared<std::vector<uint8_t>>();
    inspect(queue, work.cache, cache_bytes, [cache, cache_bytes](const uint8_t* shown) { cache->assign(shown, shown + cache_bytes); });
    inspect(queue, reinterpret_cast<const uint8_t*>(work.x), row_bytes,
            [x, row_bytes](const uint8_t* shown) { x->assign(shown, shown + row_bytes); });
    inspect(queue, reinterpret_cast<const uint8_t*>(work.y), row_bytes, [shape, cache, x](const uint8_t* shown) {
      compare_attention(shape, reinterpret_cast<const uint16_t*>(cache->data()), reinterpret_cast<const float*>(x->data()),
                        reinterpret_cast<const float*>(shown));
    });
  }

  int64_t y_row(const Routes& routes, int64_t i) const override { return routes.rows[static_cast<size_t>(i)]; }

  Event record(Queue queue) override {
    Recorded recorded;
    if (is_gpu(queue.device)) {
      const cudaStream_t stream = use(queue);
      recorded.gpu = static_cast<int>(index(queue.device)) - 1;
      recorded.event = take_event();
      require(cudaEventRecord(recorded.event, stream), "recording an event");
    } else {
      recorded.host = host_.record(queue);
    }
    events_.push_back(recorded);
    return static_cast<Event>(events_.size()) - 1;
  }

  // Whoever queues waits for the host in place of a GPU; the splits after it are queued once it is done.
  void wait(Queue queue, Event event) override {
    const Recorded& recorded = events_.at(static_cast<size_t>(event));
    if (is_gpu(queue.device)) {
      const cudaStream_t stream = use(queue);
      if (recorded.event != nullptr) return require(cudaStreamWaitEvent(stream, recorded.event, 0), "waiting for an event");
      while (!host_.has_come(recorded.host)) std::this_thread::yield();
    } else if (recorded.event != nullptr) {
      host_.inspect(queue, nullptr, 0, [awaited = recorded.event](const uint8_t*) { require(cudaEventSynchronize(awaited), "a pass"); });
    } else {
      host_.wait(queue, recorded.host);
    }
  }

  void finish(const std::function<void()>& poll) override {
    std::exception_ptr interruption;
    const auto look_up = [&] {
      if (!poll || interruption) return;
      try {
        poll();
      } catch (...) {
        interruption = std::current_exception();
      }
    };
    look_up();
    std::string error;
    int looks = 0;
    for (const Gpu& gpu : gpus_) {
      cudaSetDevice(gpu.number);
      for (const cudaStream_t stream : streams_of(gpu)) {
        cudaError_t state = cudaStreamQuery(stream);
        while (state == cudaErrorNotReady) {
          std::this_thread::sleep_for(kLook);
          if (++looks % kLooksPerPoll == 0) look_up();
          state = cudaStreamQuery(stream);
        }
        if (state != cudaSuccess && error.empty()) error = std::string("CUDA: in mid-pass: ") + cudaGetErrorString(state);
      }
    }
    static_cast<void>(cudaGetLastError());
    std::string host_error;
    try {
      host_.finish({});
    } catch (const StreamError& caught) {
      host_error = caught.what();
    }
    const std::string failure = failure_.take();
    if (interruption) std::rethrow_exception(interruption);
    for (const std::string& message : {error, failure, host_error}) {
      if (!message.empty()) throw StreamError(message);
    }
  }

  bool has_come(Event event) override {
    const Recorded& recorded = events_.at(static_cast<size_t>(event));
    if (recorded.event == nullptr) return host_.has_come(recorded.host);
    const bool has_come = cudaEventQuery(recorded.event) != cudaErrorNotReady;
    static_cast<void>(cudaGetLastError());
    return has_come;
  }

  double seconds(Event event) override {
    const Recorded& recorded = events_.at(static_cast<size_t>(event));
    if (recorded.event == nullptr) return host_.seconds(recorded.host);
    const Gpu& gpu = gpus_[static_cast<size_t>(recorded.gpu)];
    float milliseconds = 0.0F;
    require(cudaEventElapsedTime(&milliseconds, gpu.base, recorded.event), "reading an event");
    return gpu.base_seconds + static_cast<double>(milliseconds) * 1e-3;
  }

  void forget_events() override {
    drop_events();
    for (Gpu& gpu : gpus_) rebase(gpu);
  }

 private:
  struct Recorded {
    int gpu = -1;
    cudaEvent_t event = nullptr;
    Event host = kNoEvent;
  };

  [[nodiscard]] Gpu& gpu(Device device) { return gpus_.at(index(device) - 1); }

  cudaStream_t use(Queue queue) {
    const Gpu& used = gpu(queue.device);
    require(cudaSetDevice(used.number), "choosing a GPU");
    current_ = static_cast<size_t>(used.number);
    return used.streams[static_cast<size_t>(queue.stream)];
  }

  // Of the GPU in use.
  cudaEvent_t take_event() {
    auto& spare = spare_.at(current_);
    cudaEvent_t event = nullptr;
    if (spare.empty()) {
      require(cudaEventCreate(&event), "making an event");
    } else {
      event = spare.back();
      spare.pop_back();
    }
    return event;
  }

  void drop_events() {
    for (const Recorded& recorded : events_) {
      if (recorded.event != nullptr) spare_[static_cast<size_t>(recorded.gpu)].push_back(recorded.event);
    }
    events_.clear();
    host_.forget_events();
  }

  // Elapsed milliseconds are of 32 bits: counted from the start of a pass they tell a microsecond, from that of the process they do not.
  static void rebase(Gpu& gpu) {
    require(cudaSetDevice(gpu.number), "choosing a GPU");
    require(cudaEventRecord(gpu.base, gpu.streams[0]), "recording an event");
    require(cudaEventSynchronize(gpu.base), "waiting for an event");
    gpu.base_seconds = now();
  }

  static std::vector<cudaStream_t> streams_of(const Gpu& gpu) {
    std::vector<cudaStream_t> streams(gpu.streams.begin(), gpu.streams.end());
    for (const Ring& ring : gpu.rings) streams.push_back(ring.filling);
    return streams;
  }

  void open(int number, int64_t n_bytes) {
    require(cudaSetDevice(number), "choosing a GPU");
    gpus_.emplace_back();
    spare_.emplace_back();
    Gpu& gpu = gpus_.back();
    gpu.number = number;
    if (cudaMalloc(&gpu.arena, static_cast<size_t>(n_bytes)) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      throw StreamError("the arena of " + std::to_string(n_bytes) + " bytes was refused by GPU " + std::to_string(number) +
                        "; plan for a smaller budget (--vram), or end what else uses the GPU");
    }
    gpu.arena_bytes = n_bytes;
    for (cudaStream_t& stream : gpu.streams) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    for (Ring& ring : gpu.rings) {
      require(cudaMallocHost(&ring.bytes, static_cast<size_t>(kChunkBytes * kRingChunks)), "locking a ring to stage through");
      require(cudaStreamCreateWithFlags(&ring.filling, cudaStreamNonBlocking), "making a stream");
      for (auto* events : {&ring.filled, &ring.emptied}) {
        for (cudaEvent_t& event : *events) require(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
      }
    }
    require(cudaEventCreate(&gpu.base), "making an event");
    rebase(gpu);
  }

  void close() {
    std::vector<bool> is_lost;
    for (const Gpu& gpu : gpus_) {
      cudaSetDevice(gpu.number);
      is_lost.push_back(cudaDeviceSynchronize() != cudaSuccess);
    }
    drop_events();
    unlock_all();
    for (size_t i = 0; i < gpus_.size(); ++i) {
      Gpu& gpu = gpus_[i];
      cudaSetDevice(gpu.number);
      for (const cudaEvent_t event : spare_[i]) cudaEventDestroy(event);
      if (gpu.base != nullptr) cudaEventDestroy(gpu.base);
      for (Ring& ring : gpu.rings) {
        for (auto* events : {&ring.filled, &ring.emptied}) {
          for (const cudaEvent_t event : *events) {
            if (event != nullptr) cudaEventDestroy(event);
          }
        }
        if (ring.filling != nullptr) cudaStreamDestroy(ring.filling);
        cudaFreeHost(ring.bytes);
      }
      for (const cudaStream_t stream : gpu.streams) {
        if (stream != nullptr) cudaStreamDestroy(stream);
      }
      cudaFree(gpu.arena);
      if (is_lost[i]) cudaDeviceReset();  // an error in a kernel ends the context: the next backend needs a new one
    }
    static_cast<void>(cudaGetLastError());
    gpus_.clear();
  }

  // Bytes from here on that lie in one locked range, or up to the next.
  [[nodiscard]] int64_t locked_from(const uint8_t* bytes) const {
    const auto at = reinterpret_cast<uintptr_t>(bytes);
    auto after = locked_.upper_bound(at);
    if (after == locked_.begin()) return 0;
    --after;
    return after->second > at ? static_cast<int64_t>(after->second - at) : 0;
  }
  [[nodiscard]] int64_t unlocked_from(const uint8_t* bytes) const {
    const auto at = reinterpret_cast<uintptr_t>(bytes);
    const auto after = locked_.upper_bound(at);
    return after == locked_.end() ? INT64_MAX : static_cast<int64_t>(after->first - at);
  }

  [[nodiscard]] int64_t extent(const uint8_t* bytes) const {
    const int64_t n_bytes = locked_from(bytes);
    return n_bytes > 0 ? n_bytes : unlocked_from(bytes);
  }
  [[nodiscard]] bool is_in_arena(const uint8_t* bytes) const {
    return std::any_of(gpus_.begin(), gpus_.end(),
                       [&](const Gpu& gpu) { return bytes >= gpu.arena && bytes < gpu.arena + gpu.arena_bytes; });
  }

  void stage(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) {
    Gpu& used = gpu(queue.device);
    Ring& ring = used.rings[queue.stream == Stream::lane_b ? 1 : 0];
    const cudaStream_t lane = used.streams[static_cast<size_t>(queue.stream)];
    // What the lane waits for, filling waits for: nothing of a shard is read before its turn.
    const cudaEvent_t turn = ring.emptied[static_cast<size_t>(ring.next % kRingChunks)];
    require(cudaEventRecord(turn, lane), "recording an event");
    require(cudaStreamWaitEvent(ring.filling, turn, 0), "waiting for an event");
    for (int64_t at = 0; at < n_bytes; at += kChunkBytes, ++ring.next) {
      const auto slot = static_cast<size_t>(ring.next % kRingChunks);
      uint8_t* chunk = ring.bytes + static_cast<int64_t>(slot) * kChunkBytes;
      const auto n = static_cast<size_t>(std::min(kChunkBytes, n_bytes - at));
      require(cudaStreamWaitEvent(ring.filling, ring.emptied[slot], 0), "waiting for an event");
      call_in(ring.filling, [chunk, source = from + at, n] { std::memcpy(chunk, source, n); });
      require(cudaEventRecord(ring.filled[slot], ring.filling), "recording an event");
      require(cudaStreamWaitEvent(lane, ring.filled[slot], 0), "waiting for an event");
      require(cudaMemcpyAsync(to + at, chunk, n, cudaMemcpyHostToDevice, lane), "queueing a copy");
      require(cudaEventRecord(ring.emptied[slot], lane), "recording an event");
    }
  }

  template <typename Work>
  static void launch(const Work& work) {
    try {
      work();
    } catch (const GpuError& error) {
      throw StreamError(error.what());
    } catch (const std::invalid_argument& error) {
      throw StreamError(std::string("no GPU kernel takes this: ") + error.what());
    }
  }

  static const uint8_t* values_of(const AttentionWork& work) {
    return work.cache + 2 * work.shape.depth * work.shape.n_kv_heads * work.shape.head_size;
  }

  static void compare_attention(const AttentionShape& shape, const uint16_t* cache, const float* queries, const float* out) {
    Random random(2);
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random.next() % static_cast<uint64_t>(n)); };
    const int64_t size = shape.head_size;
    const int64_t cell = shape.n_kv_heads * size;
    std::vector<double> scores(static_cast<size_t>(shape.depth));
    for (int sample = 0; sample < kSamples; ++sample) {
      const int64_t head = below(shape.n_heads);
      const int64_t row = below(shape.batch) * shape.n_heads + head;
      const int64_t column = below(size);
      const uint16_t* keys = cache + head / (shape.n_heads / shape.n_kv_heads) * size;
      const uint16_t* values = keys + shape.depth * cell;
      double total = 0.0;
      double sum = 0.0;
      for (int64_t i = 0; i < shape.depth; ++i) {
        double score = 0.0;
        for (int64_t c = 0; c < size; ++c) {
          score += static_cast<double>(queries[row * size + c]) * static_cast<double>(half_to_float(keys[i * cell + c]));
        }
        const double share = std::exp(score / std::sqrt(static_cast<double>(size)));
        total += share;
        sum += share * static_cast<double>(half_to_float(values[i * cell + column]));
      }
      const double got = static_cast<double>(out[row * size + column]);
      if (std::abs(got - sum / total) <= kTolerance) continue;
      throw StreamError("attention: head " + std::to_string(head) + " gave " + std::to_string(got) + ", should be " +
                        std::to_string(sum / total));
    }
  }

  HostBackend host_;
  int64_t page_lock_bytes_;
  int64_t locked_bytes_ = 0;
  std::map<uintptr_t, uintptr_t> locked_;
  std::vector<Gpu> gpus_;
  std::vector<std::vector<cudaEvent_t>> spare_;  // by GPU
  std::vector<Recorded> events_;
  size_t current_ = 0;
  Failure failure_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) { return std::make_unique<CudaBackend>(options); }

}  // namespace pshard
