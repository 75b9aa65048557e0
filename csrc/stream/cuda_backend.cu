#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <thread>
#include <utility>

#include "probe/gpu_kernels.hpp"
#include "probe/gpu_reference.hpp"
#include "stream/cuda_backend.hpp"
#include "stream/cuda_host_count.cuh"
#include "stream/cuda_staging.cuh"
#include "stream/host_backend.hpp"
#include "stream/locked_ranges.hpp"

namespace pshard {
namespace {

constexpr int64_t kAlignment = 256;
constexpr auto kLook = std::chrono::microseconds(200);
constexpr int kLooksPerPoll = 50;
constexpr int kSamples = 8;
constexpr int kUnknown = -1;
constexpr int kBaseTries = 4;
constexpr double kCloseSeconds = 20e-6;

std::atomic<bool> context_was_lost{false};  // once in this process

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int64_t aligned(int64_t n_bytes) { return (n_bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t ids_bytes(const Product& product) { return product.routes == nullptr ? 0 : aligned(product.m * 4); }

GpuExperts experts_of(const Product& product) {
  return {product.type,        product.n, product.k, product.n_expert, product.routes->n_used, product.m / product.routes->n_used,
          product.has_own_rows};
}

// What kernels refuse is an error of the schedule.
template <typename Work>
auto with_kernels(const Work& work) {
  try {
    return work();
  } catch (const GpuError& error) {
    throw StreamError(error.what());
  } catch (const std::invalid_argument& error) {
    throw StreamError(std::string("no GPU kernel takes this: ") + error.what());
  }
}

struct Gpu {
  int number = 0;
  uint8_t* arena = nullptr;
  int64_t arena_bytes = 0;
  std::array<cudaStream_t, kStreams> streams{};
  std::array<Bounce, kStreams> bounces;
  std::array<Ring, 2> rings;  // of the two lanes
  cudaEvent_t base = nullptr;
  double base_seconds = 0.0;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const CudaBackendOptions& options)
      : host_(HostBackendOptions{options.host_cpus, {}, 0, options.path}), page_lock_bytes_(options.page_lock_bytes) {
    try {
      start(options);
    } catch (const StreamError& error) {
      if (!context_was_lost) throw;
      throw StreamError(std::string(error.what()) + "; an earlier error took this process its GPUs: start this program again");
    }
  }
  ~CudaBackend() override { close(); }

  uint8_t* arena(Device device) override { return gpu(device).arena; }
  int64_t arena_bytes(Device device) const override {
    const size_t at = index(device) - 1;
    return is_gpu(device) && at < gpus_.size() ? gpus_[at].arena_bytes : 0;
  }
  int64_t scratch_bytes(const Product& product) const override {
    return with_kernels([&] {
      if (product.routes != nullptr) return ids_bytes(product) + pshard::scratch_bytes(experts_of(product));
      return pshard::scratch_bytes(GpuProduct{product.type, product.n, product.k, product.m});
    });
  }
  int64_t scratch_bytes(const AttentionShape& shape) const override {
    return with_kernels([&] { return gpu_scratch_bytes(shape); });
  }

  // A mapped file is read-only, which the driver has to be told.
  bool lock(const uint8_t* bytes, int64_t n_bytes) override {
    return locked_.add(bytes, n_bytes, [&](void* begin, int64_t n) {
      if (locked_.n_bytes() + n > page_lock_bytes_) return false;
      const auto is_locked = [&](unsigned flags) { return cudaHostRegister(begin, static_cast<size_t>(n), flags) == cudaSuccess; };
      const bool done = is_locked(cudaHostRegisterPortable) || is_locked(cudaHostRegisterPortable | cudaHostRegisterReadOnly);
      static_cast<void>(cudaGetLastError());  // a refusal is no error of what comes next
      return done;
    });
  }
  void unlock_all() override {
    locked_.clear([](void* begin) { cudaHostUnregister(begin); });
    static_cast<void>(cudaGetLastError());
  }

  // Never waits for the copy: whoever did could not queue the copies of the next split meanwhile.
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    if (!is_gpu(queue.device)) return host_.copy(queue, to, from, n_bytes);
    const cudaStream_t stream = use(queue);
    const bool is_up = is_in_arena(to);
    const bool is_down = is_in_arena(from);
    if (!is_up && !is_down) {
      return calls_.queue(stream, [=] { std::memcpy(to, from, static_cast<size_t>(n_bytes)); });
    }
    const auto extent = [&]() -> LockedRanges::Extent {
      if (is_up && is_down) return {true, n_bytes};
      return locked_.from(is_up ? from : to);
    };
    while (n_bytes > 0) {
      const auto [is_locked, longest] = extent();
      const int64_t n = std::min(n_bytes, longest);
      if (is_locked) {
        require_success(cudaMemcpyAsync(to, from, static_cast<size_t>(n), cudaMemcpyDefault, stream), "queueing a copy");
      } else {
        stage(queue, stream, is_up, to, from, n);
      }
      to += n;
      from += n;
      n_bytes -= n;
    }
  }

  void multiply(Queue queue, const Product& product) override {
    if (!is_gpu(queue.device)) return host_.multiply(queue, product);
    const cudaStream_t stream = use(queue);
    with_kernels([&] {
      if (product.routes == nullptr) {
        pshard::multiply(GpuProduct{product.type, product.n, product.k, product.m}, product.weights, product.x, product.y, product.scratch,
                         stream);
        return;
      }
      const auto& ids = product.routes->expert;
      const auto n_bytes = static_cast<int64_t>(ids.size() * sizeof(int32_t));
      // By the GPU itself: its copy engine may be at work on a layer that streams, and has its turns.
      pshard::copy_words(product.scratch, kept_.copy_of(ids.data(), n_bytes), static_cast<int64_t>(ids.size()), stream);
      pshard::multiply_experts(experts_of(product), product.weights, reinterpret_cast<const int32_t*>(product.scratch), product.x,
                               product.y, product.scratch + ids_bytes(product), stream);
    });
  }

  void attend(Queue queue, const AttentionWork& work) override {
    if (!is_gpu(queue.device)) return host_.attend(queue, work);
    const cudaStream_t stream = use(queue);
    with_kernels([&] { pshard::attend(work.shape, false, work.x, work.cache, values_of(work), work.y, work.scratch, stream); });
  }

  void inspect(Queue queue, const uint8_t* bytes, int64_t n_bytes, std::function<void(const uint8_t*)> look) override {
    if (!is_gpu(queue.device)) return host_.inspect(queue, bytes, n_bytes, std::move(look));
    const cudaStream_t stream = use(queue);
    bounce(queue).show(stream, calls_, bytes, n_bytes, std::move(look));
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
      const auto* keys = reinterpret_cast<const uint16_t*>(cache->data());
      const auto* values = keys + shape.depth * shape.n_kv_heads * shape.head_size;
      const std::string fault = fault_of_attention(shape, false, reinterpret_cast<const float*>(x->data()), keys, values,
                                                   reinterpret_cast<const float*>(shown), kSamples);
      if (!fault.empty()) throw StreamError("attention: " + fault);
    });
  }

  int64_t y_row(const Product& product, int64_t i) const override {
    const bool is_here = is_in_arena(reinterpret_cast<const uint8_t*>(product.y));
    return is_here ? product.routes->rows[static_cast<size_t>(i)] : host_.y_row(product, i);
  }

  Event record(Queue queue) override {
    Recorded recorded;
    recorded.queue = number_of(queue);
    if (is_gpu(queue.device)) {
      const cudaStream_t stream = use(queue);
      recorded.gpu = static_cast<int>(index(queue.device)) - 1;
      recorded.event = take_event();
      require_success(cudaEventRecord(recorded.event, stream), "recording an event");
    } else {
      recorded.host = host_.record(queue);
      if (!gpus_.empty()) {
        recorded.count = host_count_.next();
        host_.always(queue, [this, count = recorded.count] { host_count_.reach(count); });
      }
    }
    return add(std::move(recorded));
  }

  // An event costs the host more than a microsecond; one that is told by others of the same GPU is not recorded.
  Event begin(Queue queue) override {
    std::vector<Event>& before = before_[number_of(queue)];
    const auto is_here = [&](Event event) {
      return events_[static_cast<size_t>(event)].gpu == static_cast<int>(pshard::index(queue.device)) - 1;
    };
    if (!is_gpu(queue.device) || before.empty() || !std::all_of(before.begin(), before.end(), is_here)) return record(queue);
    Recorded told;
    told.gpu = events_[static_cast<size_t>(before.back())].gpu;
    told.before = before;
    events_.push_back(std::move(told));
    return static_cast<Event>(events_.size()) - 1;
  }

  // A call to the driver takes a microsecond or more: what a queue has seen of itself, or through a later event of the same other, it need
  // not be told. Where a GPU cannot wait for the host, whoever queues does in its place.
  void wait(Queue queue, Event event) override {
    const Recorded& recorded = events_.at(static_cast<size_t>(event));
    before_[number_of(queue)].push_back(event);
    Event& seen = n_seen_[number_of(queue)][recorded.queue];
    if (number_of(queue) == recorded.queue || event < seen) return;
    seen = event + 1;
    if (is_gpu(queue.device)) {
      if (recorded.event != nullptr) return require_success(cudaStreamWaitEvent(use(queue), recorded.event, 0), "waiting for an event");
      if (host_count_.wait(use(queue), recorded.count)) return;
      while (!host_.has_come(recorded.host)) std::this_thread::yield();
    } else if (recorded.event != nullptr) {
      host_.inspect(queue, nullptr, 0,
                    [awaited = recorded.event](const uint8_t*) { require_success(cudaEventSynchronize(awaited), "a pass"); });
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
        // Kernels and copies that are queued cannot be taken back; the CPU's splits and what is staged are passed by.
        host_.give_up("interrupted");
        failure_.set("interrupted");
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
    if (error.empty()) calls_.forget();
    std::string host_error;
    try {
      host_.finish(look_up);
    } catch (const StreamError& caught) {
      host_error = caught.what();
    }
    current_ = kUnknown;  // until the next work comes another thread may be the one that queues, or another GPU be chosen
    const std::string failure = failure_.take();
    if (interruption) std::rethrow_exception(interruption);
    for (const std::string& message : {error, failure, host_error}) {
      if (!message.empty()) throw StreamError(message);
    }
  }

  bool has_come(Event event) override {
    const Recorded& recorded = events_.at(static_cast<size_t>(event));
    if (!recorded.before.empty()) {
      return std::all_of(recorded.before.begin(), recorded.before.end(), [&](Event before) { return has_come(before); });
    }
    if (recorded.event == nullptr) return host_.has_come(recorded.host);
    const bool has_come = cudaEventQuery(recorded.event) != cudaErrorNotReady;
    static_cast<void>(cudaGetLastError());
    return has_come;
  }

  double seconds(Event event) override {
    const Recorded& recorded = events_.at(static_cast<size_t>(event));
    if (!recorded.before.empty()) {
      double latest = seconds(recorded.before.front());
      for (const Event before : recorded.before) latest = std::max(latest, seconds(before));
      return latest;
    }
    if (recorded.event == nullptr) return host_.seconds(recorded.host);
    const Gpu& gpu = gpus_[static_cast<size_t>(recorded.gpu)];
    float milliseconds = 0.0F;
    require_success(cudaEventElapsedTime(&milliseconds, gpu.base, recorded.event), "reading an event");
    return gpu.base_seconds + static_cast<double>(milliseconds) * 1e-3;
  }

  void forget_events() override {
    drop_events();
    kept_.forget();
    for (Gpu& gpu : gpus_) rebase(gpu);
    current_ = kUnknown;
  }

 private:
  void start(const CudaBackendOptions& options) {
    int n_devices = 0;
    require_success(cudaGetDeviceCount(&n_devices), "looking for GPUs");
    if (static_cast<size_t>(n_devices) < options.arena_bytes.size()) {
      throw StreamError(std::to_string(options.arena_bytes.size()) + " GPUs are asked for, " + std::to_string(n_devices) + " are here");
    }
    try {
      if (!options.arena_bytes.empty()) host_count_.open();
      for (size_t i = 0; i < options.arena_bytes.size(); ++i) open(static_cast<int>(i), options.arena_bytes[i]);
    } catch (...) {
      close();
      throw;
    }
  }

  struct Recorded {
    int gpu = -1;
    cudaEvent_t event = nullptr;
    Event host = kNoEvent;
    uint32_t count = 0;           // of the host
    std::vector<Event> before{};  // that tell when it came, where it was not recorded
    size_t queue = 0;
  };
  Event add(Recorded recorded) {
    const auto event = static_cast<Event>(events_.size());
    before_[recorded.queue] = {event};
    events_.push_back(std::move(recorded));
    return event;
  }

  static constexpr size_t kQueues = kMaxDevices * kStreams;
  static size_t number_of(Queue queue) { return index(queue.device) * kStreams + static_cast<size_t>(queue.stream); }

  [[nodiscard]] Gpu& gpu(Device device) { return gpus_.at(index(device) - 1); }

  cudaStream_t use(Queue queue) {
    const Gpu& used = gpu(queue.device);
    if (current_ != used.number) require_success(cudaSetDevice(used.number), "choosing a GPU");
    current_ = used.number;
    return used.streams[static_cast<size_t>(queue.stream)];
  }

  // Of the GPU in use.
  cudaEvent_t take_event() {
    auto& spare = spare_.at(static_cast<size_t>(current_));
    cudaEvent_t event = nullptr;
    if (spare.empty()) {
      require_success(cudaEventCreate(&event), "making an event");
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
    n_seen_ = {};
    before_ = {};
    host_.forget_events();
  }

  // Elapsed milliseconds are of 32 bits: counted from the start of a pass they tell a microsecond, from that of the process they do not.
  // The event came between two looks at the host's clock, which some thread may have drawn apart: then it is recorded anew.
  static void rebase(Gpu& gpu) {
    require_success(cudaSetDevice(gpu.number), "choosing a GPU");
    for (int i = 0; i < kBaseTries; ++i) {
      const double before = now();
      require_success(cudaEventRecord(gpu.base, gpu.streams[0]), "recording an event");
      require_success(cudaEventSynchronize(gpu.base), "waiting for an event");
      const double after = now();
      gpu.base_seconds = 0.5 * (before + after);
      if (after - before < kCloseSeconds) return;
    }
  }

  static std::vector<cudaStream_t> streams_of(const Gpu& gpu) {
    std::vector<cudaStream_t> streams(gpu.streams.begin(), gpu.streams.end());
    for (const Ring& ring : gpu.rings) streams.push_back(ring.filling());
    return streams;
  }

  void open(int number, int64_t n_bytes) {
    require_success(cudaSetDevice(number), "choosing a GPU");
    with_kernels([] { require_kernels(); });
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
    for (cudaStream_t& stream : gpu.streams) require_success(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    for (Bounce& bounce : gpu.bounces) bounce.open();
    for (Ring& ring : gpu.rings) ring.open();
    require_success(cudaEventCreate(&gpu.base), "making an event");
    rebase(gpu);
  }

  void close() {
    try {
      host_.finish({});  // its threads write to what is given back here
    } catch (const StreamError&) {
      // Who closes after an error has heard of it.
    }
    std::vector<bool> is_lost;
    for (const Gpu& gpu : gpus_) {
      cudaSetDevice(gpu.number);
      is_lost.push_back(cudaDeviceSynchronize() != cudaSuccess);
    }
    drop_events();
    unlock_all();
    kept_.close();
    for (size_t i = 0; i < gpus_.size(); ++i) {
      Gpu& gpu = gpus_[i];
      cudaSetDevice(gpu.number);
      for (const cudaEvent_t event : spare_[i]) cudaEventDestroy(event);
      if (gpu.base != nullptr) cudaEventDestroy(gpu.base);
      for (Ring& ring : gpu.rings) ring.close();
      for (Bounce& bounce : gpu.bounces) bounce.close();
      for (const cudaStream_t stream : gpu.streams) {
        if (stream != nullptr) cudaStreamDestroy(stream);
      }
    }
    host_count_.close();  // streams that failed may have waited for it until here
    for (size_t i = 0; i < gpus_.size(); ++i) {
      cudaSetDevice(gpus_[i].number);
      cudaFree(gpus_[i].arena);
      if (!is_lost[i]) continue;
      cudaDeviceReset();  // an error in a kernel ends the context: the next backend needs a new one, which not every driver makes
      context_was_lost = true;
    }
    static_cast<void>(cudaGetLastError());
    gpus_.clear();
    calls_.forget();
  }

  [[nodiscard]] Bounce& bounce(Queue queue) { return gpu(queue.device).bounces[static_cast<size_t>(queue.stream)]; }
  [[nodiscard]] bool is_in_arena(const uint8_t* bytes) const {
    return std::any_of(gpus_.begin(), gpus_.end(),
                       [&](const Gpu& gpu) { return bytes >= gpu.arena && bytes < gpu.arena + gpu.arena_bytes; });
  }

  void stage(Queue queue, cudaStream_t stream, bool is_up, uint8_t* to, const uint8_t* from, int64_t n_bytes) {
    if (!is_up) return bounce(queue).down(stream, calls_, to, from, n_bytes);
    if (queue.stream != Stream::lane_a && queue.stream != Stream::lane_b) return bounce(queue).up(stream, calls_, to, from, n_bytes);
    gpu(queue.device).rings[queue.stream == Stream::lane_b ? 1 : 0].up(stream, calls_, to, from, n_bytes);
  }

  static const uint8_t* values_of(const AttentionWork& work) {
    return work.cache + 2 * work.shape.depth * work.shape.n_kv_heads * work.shape.head_size;
  }

  HostBackend host_;
  int64_t page_lock_bytes_;
  LockedRanges locked_{sysconf(_SC_PAGESIZE)};
  Kept kept_;
  HostCount host_count_;
  std::vector<Gpu> gpus_;
  std::vector<std::vector<cudaEvent_t>> spare_;  // by GPU
  std::vector<Recorded> events_;
  int current_ = kUnknown;                                    // the GPU that the thread which queues works with
  std::array<std::array<Event, kQueues>, kQueues> n_seen_{};  // by the queue that waited and the one of the event: events up to that one
  std::array<std::vector<Event>, kQueues> before_;            // by queue: its last event, and what it waited for since
  Failure failure_;
  Calls calls_{failure_};
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) { return std::make_unique<CudaBackend>(options); }

}  // namespace pshard
