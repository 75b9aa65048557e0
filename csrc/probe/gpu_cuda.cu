#include <cuda_runtime.h>

#include <cstring>
#include <limits>

#include "probe/cublas.hpp"
#include "probe/gpu.hpp"
#include "probe/gpu_error.cuh"
#include "probe/gpu_sum.cuh"

namespace pshard {
namespace {

// A gate that nobody opens would hold the process for ever: it opens by itself after this long.
constexpr unsigned long long kGateNanoseconds = 2'000'000'000ULL;
// CUDA states half a microsecond as the resolution of its events.
constexpr double kEventTickSeconds = 0.5e-6;

__global__ void do_nothing() {}

__global__ void show_value(uint32_t* to, uint32_t value) { *static_cast<volatile uint32_t*>(to) = value; }

enum GateState : uint32_t { kShut = 0, kOpen = 1, kOpenedItself = 2 };

// Waits until the host opens the gate. Time comes from the device's clock of nanoseconds.
__global__ void wait_at_gate(volatile uint32_t* gate) {
  unsigned long long start;
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  now = start;
  while (*gate == kShut && now - start < kGateNanoseconds) {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  }
  if (*gate == kShut) *gate = kOpenedItself;
  __threadfence_system();
}

class CudaGpu final : public Gpu {
 public:
  explicit CudaGpu(int index) : index_(index) {
    int count = 0;
    require(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    if (index < 0 || index >= count) {
      throw GpuError("there is no GPU " + std::to_string(index) + ", the CUDA runtime finds " + std::to_string(count));
    }
    use();
    require(cudaGetDeviceProperties(&properties_, index), "cudaGetDeviceProperties");
    require_kernels();
    require(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&read_blocks_, sum_words, kReadThreads, 0),
            "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    try {
      for (cudaStream_t& stream : streams_) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
      require(cudaStreamCreateWithFlags(&gate_stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
      for (cudaEvent_t& event : events_) require(cudaEventCreate(&event), "cudaEventCreate");
      require(cudaEventCreateWithFlags(&gate_event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
      void* gate = nullptr;
      require(cudaHostAlloc(&gate, sizeof(uint32_t), cudaHostAllocMapped | cudaHostAllocPortable), "cudaHostAlloc");
      gate_ = static_cast<volatile uint32_t*>(gate);
      load_kernels();
    } catch (...) {
      give_back();
      throw;
    }
  }
  ~CudaGpu() override { give_back(); }
  CudaGpu(const CudaGpu&) = delete;
  CudaGpu& operator=(const CudaGpu&) = delete;

  std::string name() const override { return properties_.name; }
  int64_t cache_bytes() const override { return properties_.l2CacheSize; }
  int32_t copy_engines() const override { return properties_.asyncEngineCount; }
  double tick_seconds() const override { return kEventTickSeconds; }
  int64_t free_bytes() const override {
    use();
    std::size_t free = 0;
    std::size_t total = 0;
    require(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return static_cast<int64_t>(free);
  }

  uint8_t* allocate(int64_t n_bytes) override {
    use();
    void* bytes = nullptr;
    require(cudaMalloc(&bytes, static_cast<std::size_t>(n_bytes)), "cudaMalloc");
    return static_cast<uint8_t*>(bytes);
  }
  void free(uint8_t* bytes) noexcept override { static_cast<void>(cudaFree(bytes)); }
  uint8_t* lock(int64_t n_bytes) override {
    use();
    void* bytes = nullptr;
    if (cudaHostAlloc(&bytes, static_cast<std::size_t>(n_bytes), cudaHostAllocPortable | cudaHostAllocMapped) == cudaSuccess) {
      return static_cast<uint8_t*>(bytes);
    }
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  void unlock(uint8_t* bytes) noexcept override { static_cast<void>(cudaFreeHost(bytes)); }

  void copy(GpuLane lane, void* to, const void* from, int64_t n_bytes) override {
    use();
    require(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n_bytes), cudaMemcpyDefault, of(lane)), "cudaMemcpyAsync");
  }
  void fill(GpuLane lane, void* to, uint8_t byte, int64_t n_bytes) override {
    use();
    require(cudaMemsetAsync(to, byte, static_cast<std::size_t>(n_bytes), of(lane)), "cudaMemsetAsync");
  }
  void do_nothing(GpuLane lane) override {
    use();
    pshard::do_nothing<<<1, kWarp, 0, of(lane)>>>();
    require(cudaGetLastError(), "do_nothing");
  }
  void show(GpuLane lane, uint32_t* locked, uint32_t value) override {
    use();
    show_value<<<1, 1, 0, of(lane)>>>(locked, value);
    require(cudaGetLastError(), "show_value");
  }
  void sum(GpuLane lane, const void* words, int64_t n_words, uint64_t* out) override {
    use();
    const auto blocks = static_cast<unsigned>(properties_.multiProcessorCount * read_blocks_);
    sum_words<<<blocks, kReadThreads, 0, of(lane)>>>(static_cast<const uint8_t*>(words), n_words / 2,
                                                     reinterpret_cast<unsigned long long*>(out));
    require(cudaGetLastError(), "sum_words");
  }
  void multiply(GpuLane lane, const GpuProduct& shape, const void* weights, const float* x, float* y, void* scratch) override {
    use();
    pshard::multiply(shape, weights, x, y, scratch, of(lane));
  }
  void multiply_experts(GpuLane lane, const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y,
                        void* scratch) override {
    use();
    pshard::multiply_experts(shape, weights, ids, x, y, scratch, of(lane));
  }
  void attend(GpuLane lane, const AttentionShape& shape, const float* queries, const void* keys, const void* values, float* out,
              void* scratch) override {
    use();
    pshard::attend(shape, false, queries, keys, values, out, scratch, of(lane));
  }

  void multiply_by_library(GpuLane lane, const GpuProduct& shape, const uint16_t* weights, const uint16_t* x, float* y) override {
    use();
    if (cublas_ == nullptr) cublas_ = std::make_unique<Cublas>();
    cublas_->multiply(of(lane), shape.n_rows, shape.n_columns, shape.batch, weights, x, y);
  }

  void record(GpuLane lane, int event) override { require(cudaEventRecord(event_of(event), of(lane)), "cudaEventRecord"); }
  void wait(GpuLane lane, int event) override { require(cudaStreamWaitEvent(of(lane), event_of(event), 0), "cudaStreamWaitEvent"); }
  void synchronise(GpuLane lane) override { require(cudaStreamSynchronize(of(lane)), "cudaStreamSynchronize"); }
  double seconds_between(int from, int to) override {
    float milliseconds = 0.0F;
    require(cudaEventElapsedTime(&milliseconds, event_of(from), event_of(to)), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds) * 1e-3;
  }

  void hold() override {
    use();
    require(cudaStreamSynchronize(gate_stream_), "cudaStreamSynchronize");  // who waited there last has seen it open
    *gate_ = kShut;
    wait_at_gate<<<1, 1, 0, gate_stream_>>>(gate_);
    require(cudaGetLastError(), "wait_at_gate");
    require(cudaEventRecord(gate_event_, gate_stream_), "cudaEventRecord");
    for (cudaStream_t stream : streams_) require(cudaStreamWaitEvent(stream, gate_event_, 0), "cudaStreamWaitEvent");
  }
  bool release() override {
    const bool was_shut = *gate_ == kShut;
    *gate_ = kOpen;
    return was_shut;
  }

 private:
  // The device is the thread's: another thread may call, or another device have been chosen since.
  void use() const { require(cudaSetDevice(index_), "cudaSetDevice"); }
  cudaStream_t of(GpuLane lane) const { return streams_[static_cast<int>(lane)]; }
  cudaEvent_t event_of(int event) const { return events_[event]; }

  // Loading a kernel waits for the device, which would wait at the gate: each that runs behind it is loaded before.
  void load_kernels() {
    hold();
    static_cast<void>(release());
    do_nothing(GpuLane::compute);
    show(GpuLane::compute, const_cast<uint32_t*>(gate_), kOpen);
    require(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  void give_back() noexcept {
    static_cast<void>(cudaSetDevice(index_));
    if (gate_ != nullptr) *gate_ = kOpen;
    static_cast<void>(cudaDeviceSynchronize());
    cublas_.reset();
    for (cudaStream_t stream : streams_) {
      if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
    }
    if (gate_stream_ != nullptr) static_cast<void>(cudaStreamDestroy(gate_stream_));
    for (cudaEvent_t event : events_) {
      if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
    }
    if (gate_event_ != nullptr) static_cast<void>(cudaEventDestroy(gate_event_));
    if (gate_ != nullptr) static_cast<void>(cudaFreeHost(const_cast<uint32_t*>(gate_)));
    static_cast<void>(cudaGetLastError());
  }

  int index_;
  cudaDeviceProp properties_{};
  int read_blocks_ = 0;  // of sum_words that a multiprocessor holds at once: none comes when the others have gone
  cudaStream_t streams_[kGpuLanes] = {};
  cudaStream_t gate_stream_ = nullptr;
  cudaEvent_t events_[kGpuEvents] = {};
  cudaEvent_t gate_event_ = nullptr;
  volatile uint32_t* gate_ = nullptr;
  std::unique_ptr<Cublas> cublas_;  // when it is first asked for
};

}  // namespace

std::unique_ptr<Gpu> open_gpu(int index) { return std::make_unique<CudaGpu>(index); }

}  // namespace pshard
