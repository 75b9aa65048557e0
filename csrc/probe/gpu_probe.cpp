#include "probe/gpu_probe.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "probe/gpu_reference.hpp"
#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr double kLeastTicks = 250.0;    // of the device's clock in a sample: well above what measure() refuses
constexpr double kSampleSeconds = 1e-3;  // that a sample is meant to take: far above what a gate and events do
constexpr int kMostProducts = 64;        // in one sample; each is a few kernels
constexpr double kOutlast = 3.0;         // times as long works who works beside: even at a third of its seconds it is there to the end
constexpr int64_t kVerifiedBytes = 64LL << 20;  // of a sample of copies
constexpr int64_t kMostRingBytes = 1LL << 30;
constexpr int64_t kReadBytes = 512LL << 20;  // at least 8 times the cache, where the device has so much
constexpr int64_t kRandomBytes = 16LL << 20;
constexpr int64_t kSamples = 64;
constexpr uint8_t kNoNumber = 0xff;  // floats of such bytes are NaN
constexpr double kSignalSeconds = 2.0;
constexpr int kSignals = 16;

std::vector<float> random_values(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = random.next_float();
  return values;
}

template <typename T>
GpuBytes uploaded(Gpu& gpu, const std::vector<T>& values) {
  const auto n_bytes = static_cast<int64_t>(values.size() * sizeof(T));
  GpuBytes bytes(gpu, n_bytes);
  gpu.copy(GpuLane::compute, bytes.data(), values.data(), n_bytes);
  gpu.synchronise(GpuLane::compute);
  return bytes;
}

template <typename T>
std::vector<T> downloaded(Gpu& gpu, const GpuBytes& bytes) {
  std::vector<T> values(static_cast<std::size_t>(bytes.size()) / sizeof(T));
  gpu.copy(GpuLane::compute, values.data(), bytes.data(), bytes.size());
  gpu.synchronise(GpuLane::compute);
  return values;
}

// Of one repetition.
Measurement each(Measurement time, double n) {
  time.median_seconds /= n;
  time.minimum_seconds /= n;
  return time;
}

ProbeResult result_of(const Measurement& time, double n_bytes = 0.0, double n_flop = 0.0) { return {time, n_bytes, n_flop, 0, true, ""}; }

}  // namespace

// Copies of a matrix or a cache on the device, enough of them that a round through all leaves none in its cache.
class GpuProbe::Weights {
 public:
  // `copy` is in host memory.
  Weights(Gpu& gpu, std::vector<uint8_t> copy, int64_t max_bytes) : copy_(std::move(copy)) {
    stride_ = (static_cast<int64_t>(copy_.size()) + 255) / 256 * 256;
    const int64_t cold = 2 * gpu.cache_bytes();
    n_ = std::min(std::max<int64_t>(1, (cold + stride_ - 1) / stride_), max_bytes / stride_);
    if (n_ < 1) {
      throw ProbeError(std::to_string(stride_ >> 20) + " MiB are needed on the GPU, the probe may take " + std::to_string(max_bytes >> 20) +
                       "; end what else uses it, or probe a smaller shape");
    }
    is_cold_ = n_ * stride_ >= cold;
    memory_ = GpuBytes(gpu, n_ * stride_);
    gpu.copy(GpuLane::compute, memory_.data(), copy_.data(), static_cast<int64_t>(copy_.size()));
    for (int64_t i = 1; i < n_; ++i) {
      gpu.copy(GpuLane::compute, memory_.data() + i * stride_, memory_.data(), static_cast<int64_t>(copy_.size()));
    }
    gpu.synchronise(GpuLane::compute);
  }

  [[nodiscard]] const std::vector<uint8_t>& host() const { return copy_; }
  [[nodiscard]] const uint8_t* at(int64_t index) const { return memory_.data() + index % n_ * stride_; }
  void say(ProbeResult& result) const {
    result.is_cold = is_cold_;
    if (!is_cold_) result.note = "repetitions read " + std::to_string(n_ * stride_ >> 20) + " MiB in turn, which the GPU's cache may hold";
  }

 private:
  std::vector<uint8_t> copy_;
  int64_t stride_ = 0;
  int64_t n_ = 0;
  bool is_cold_ = true;
  GpuBytes memory_;
};

GpuProbe::GpuProbe(std::unique_ptr<Gpu> gpu, int64_t max_device_bytes, int64_t max_host_bytes)
    : gpu_(std::move(gpu)), max_device_bytes_(max_device_bytes), max_host_bytes_(max_host_bytes) {
  if (max_device_bytes < 1) throw std::invalid_argument("max_device_bytes is " + std::to_string(max_device_bytes) + ", must be positive");
  if (max_host_bytes < 1) throw std::invalid_argument("max_host_bytes is " + std::to_string(max_host_bytes) + ", must be positive");
}

Timer GpuProbe::timer() const { return {steady_timer().now, gpu_->tick_seconds()}; }

double GpuProbe::timed(Repeated& work, int64_t n, Repeated* beside, int64_t n_beside) {
  constexpr int start = 0, end = 1, end_beside = 2;
  work.spoil(work.next, n);
  if (beside != nullptr) beside->spoil(beside->next, n_beside);
  gpu_->synchronise(work.lane);
  gpu_->hold();
  try {
    gpu_->record(work.lane, start);
    // In turns, so that neither side's work waits in the driver for the other's.
    for (int64_t i = 0; i < std::max(n, n_beside); ++i) {
      if (beside != nullptr && i < n_beside) beside->queue(beside->next++);
      if (i < n) work.queue(work.next++);
    }
    work.n_last = n;
    if (beside != nullptr) beside->n_last = n_beside;
    gpu_->record(work.lane, end);
    if (beside != nullptr) gpu_->record(beside->lane, end_beside);
  } catch (...) {
    static_cast<void>(gpu_->release());
    throw;
  }
  const bool was_held = gpu_->release();
  gpu_->synchronise(work.lane);
  if (beside != nullptr) gpu_->synchronise(beside->lane);
  if (!was_held) {
    throw ProbeError(
        "work began before all of it was queued, because a call waited for the GPU; unset CUDA_LAUNCH_BLOCKING, and end tools that trace");
  }
  const double seconds = gpu_->seconds_between(start, end);
  if (beside != nullptr && gpu_->seconds_between(start, end_beside) < seconds) {
    throw ProbeError("what was to work beside ended first, so the rest of the sample was alone");
  }
  return seconds;
}

// The first repetition runs outside of the gate: the driver may load what it needs, and wait for the device meanwhile.
void GpuProbe::calibrate(Repeated& work) {
  if (work.seconds > 0.0) return;
  work.queue_next(1);
  gpu_->synchronise(work.lane);
  int64_t n = 1;
  for (int round = 0; round < 2; ++round) {  // the first time counts the events too
    work.seconds = std::max(timed(work, n) / static_cast<double>(n), 1e-9);
    n = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(kSampleSeconds / work.seconds)), 1, work.most);
  }
}

ProbeResult GpuProbe::measured(Repeated& work, double n_bytes, double n_flop, const Policy& policy, Repeated* beside) {
  calibrate(work);
  const double wanted = std::max(kSampleSeconds, kLeastTicks * gpu_->tick_seconds());
  auto n = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(wanted / work.seconds)), 1, work.most);
  int64_t n_beside = 0;
  if (beside != nullptr) {
    calibrate(*beside);
    const auto beside_for = [&](int64_t of) {
      return 1 + static_cast<int64_t>(std::ceil(kOutlast * static_cast<double>(of) * work.seconds / beside->seconds));
    };
    while (n > 1 && beside_for(n) > beside->most) n /= 2;
    n_beside = beside_for(n);
    if (n_beside > beside->most) throw ProbeError("the pieces of work beside each other are too different in length");
  }
  const Measurement time = measure([&] { return timed(work, n, beside, n_beside); },
                                   [&] {
                                     std::string fault = work.fault(work.next - work.n_last, work.n_last);
                                     if (fault.empty() && beside != nullptr)
                                       fault = beside->fault(beside->next - beside->n_last, beside->n_last);
                                     return fault;
                                   },
                                   policy, timer());
  if (beside == nullptr) work.seconds = time.median_seconds / static_cast<double>(n);
  return result_of(each(time, static_cast<double>(n)), n_bytes, n_flop);
}

namespace {

// Random bytes over and over on the device, whose sum is known.
struct KnownArray {
  KnownArray(Gpu& gpu, int64_t n_bytes) : bytes(gpu, n_bytes) {
    std::vector<uint64_t> block(static_cast<std::size_t>(std::min(n_bytes, kRandomBytes)) / 8);
    Random random(5);
    uint64_t of_block = 0;
    for (uint64_t& word : block) of_block += word = random.next();
    const auto block_bytes = static_cast<int64_t>(block.size() * 8);
    gpu.copy(GpuLane::compute, bytes.data(), block.data(), block_bytes);
    gpu.synchronise(GpuLane::compute);
    for (int64_t at = block_bytes; at < n_bytes; at += block_bytes) {
      gpu.copy(GpuLane::compute, bytes.data() + at, bytes.data(), block_bytes);
    }
    gpu.synchronise(GpuLane::compute);
    sum = of_block * static_cast<uint64_t>(n_bytes / block_bytes);
  }

  GpuBytes bytes;
  uint64_t sum = 0;
};

// A multiple of kRandomBytes, where the limit is.
int64_t read_bytes(const Gpu& gpu, int64_t limit) {
  const int64_t wanted = std::min(std::max(kReadBytes, 8 * gpu.cache_bytes()), limit);
  return wanted >= kRandomBytes ? wanted / kRandomBytes * kRandomBytes : wanted / 16 * 16;
}

}  // namespace

ProbeResult GpuProbe::read(const Policy& policy) {
  const int64_t n_bytes = read_bytes(*gpu_, max_device_bytes_);
  const KnownArray array(*gpu_, n_bytes);
  const GpuBytes out(*gpu_, 8);
  Repeated work;
  work.most = kMostProducts;
  work.queue = [&](int64_t) { gpu_->sum(GpuLane::compute, array.bytes.data(), n_bytes / 8, out.as<uint64_t>()); };
  work.spoil = [&](int64_t, int64_t) { gpu_->fill(GpuLane::compute, out.data(), 0, 8); };
  work.fault = [&](int64_t, int64_t n) {
    const bool is_right = downloaded<uint64_t>(*gpu_, out).front() == array.sum * static_cast<uint64_t>(n);
    return std::string(is_right ? "" : "the sum of the array is not what was written");
  };
  ProbeResult result = measured(work, static_cast<double>(n_bytes), 0.0, policy);
  result.is_cold = n_bytes >= 4 * gpu_->cache_bytes();
  if (!result.is_cold) result.note = "the GPU's cache may hold a part of the array";
  return result;
}

ProbeResult GpuProbe::copy_on_device(const Policy& policy) {
  const int64_t n_bytes = read_bytes(*gpu_, max_device_bytes_ / 2);
  const KnownArray array(*gpu_, n_bytes);
  const GpuBytes to(*gpu_, n_bytes);
  const GpuBytes out(*gpu_, 8);
  Repeated work;
  work.most = kMostProducts;
  work.queue = [&](int64_t) { gpu_->copy(GpuLane::compute, to.data(), array.bytes.data(), n_bytes); };
  work.spoil = [&](int64_t, int64_t) { gpu_->fill(GpuLane::compute, to.data(), 0, n_bytes); };
  work.fault = [&](int64_t, int64_t) {
    gpu_->fill(GpuLane::compute, out.data(), 0, 8);
    gpu_->sum(GpuLane::compute, to.data(), n_bytes / 8, out.as<uint64_t>());
    const bool is_right = downloaded<uint64_t>(*gpu_, out).front() == array.sum;
    return std::string(is_right ? "" : "the copy of the array has another sum");
  };
  ProbeResult result = measured(work, static_cast<double>(n_bytes), 0.0, policy);
  result.is_cold = n_bytes >= 4 * gpu_->cache_bytes();
  return result;
}

GpuStart GpuProbe::start(const Policy& policy) {
  constexpr int there = 3, back = 4;
  GpuStart result;
  Repeated launch;
  launch.most = kMostQueued;
  launch.queue = [&](int64_t) { gpu_->do_nothing(GpuLane::compute); };
  result.launch = measured(launch, 0.0, 0.0, policy);
  Repeated round;
  round.most = kMostQueued / 4;
  round.queue = [&](int64_t) {
    gpu_->do_nothing(GpuLane::compute);
    gpu_->record(GpuLane::compute, there);
    gpu_->wait(GpuLane::up, there);
    gpu_->do_nothing(GpuLane::up);
    gpu_->record(GpuLane::up, back);
    gpu_->wait(GpuLane::compute, back);
  };
  result.hop = measured(round, 0.0, 0.0, policy);
  result.hop.time = each(result.hop.time, 2.0);
  constexpr int calls = 100;
  const Timer& host = steady_timer();
  const auto synchronise = [&] {
    const double start = host.now();
    for (int i = 0; i < calls; ++i) gpu_->synchronise(GpuLane::compute);
    return host.now() - start;
  };
  result.synchronise = result_of(each(measure(
                                          synchronise, [] { return std::string(); }, policy, host),
                                      calls));
  return result;
}

Handoff GpuProbe::handoff(const Policy& policy) {
  const Timer& host = steady_timer();
  uint8_t* locked = gpu_->lock(64);
  if (locked == nullptr) throw ProbeError("the driver does not page-lock 64 bytes of host memory");
  const std::unique_ptr<uint8_t, std::function<void(uint8_t*)>> guard(locked, [&](uint8_t* bytes) { gpu_->unlock(bytes); });
  auto* flag = reinterpret_cast<volatile uint32_t*>(locked);
  *flag = 0;
  uint32_t value = 0;
  // Seconds until the kernel runs, and from then until the host knows of its end, kSignals times.
  const auto signals = [&](double& to_gpu, double& to_cpu) {
    to_gpu = to_cpu = 0.0;
    for (int i = 0; i < kSignals; ++i) {
      ++value;
      const double start = host.now();
      gpu_->show(GpuLane::compute, const_cast<uint32_t*>(flag), value);
      while (*flag != value) {
        if (host.now() - start > kSignalSeconds) throw ProbeError("the GPU does not write to page-locked memory of the host");
      }
      const double seen = host.now();
      gpu_->synchronise(GpuLane::compute);
      to_cpu += host.now() - seen;
      to_gpu += seen - start;
    }
  };
  const auto right = [] { return std::string(); };  // who waits for the value has seen it
  double to_gpu = 0.0;
  double to_cpu = 0.0;
  const auto up = [&] { return signals(to_gpu, to_cpu), to_gpu; };
  const auto down = [&] { return signals(to_gpu, to_cpu), to_cpu; };
  Handoff result;
  result.to_gpu = result_of(each(measure(up, right, policy, host), kSignals));
  result.to_cpu = result_of(each(measure(down, right, policy, host), kSignals));
  return result;
}

GpuProbe::Repeated GpuProbe::products(const GpuProduct& shape, const std::shared_ptr<Weights>& weights) {
  struct Memory {
    std::vector<float> x;
    GpuBytes x_on_device, y, scratch;
  };
  const auto memory = std::make_shared<Memory>();
  memory->x = random_values(shape.batch * shape.n_columns, 7);
  memory->x_on_device = uploaded(*gpu_, memory->x);
  memory->y = GpuBytes(*gpu_, shape.batch * shape.n_rows * 4);
  memory->scratch = GpuBytes(*gpu_, std::max<int64_t>(256, scratch_bytes(shape)));
  Repeated work;
  work.most = kMostProducts;
  work.queue = [this, shape, weights, memory](int64_t index) {
    gpu_->multiply(GpuLane::compute, shape, weights->at(index), memory->x_on_device.as<float>(), memory->y.as<float>(),
                   memory->scratch.data());
  };
  work.spoil = [this, memory](int64_t, int64_t) { gpu_->fill(GpuLane::compute, memory->y.data(), kNoNumber, memory->y.size()); };
  work.fault = [this, shape, weights, memory](int64_t, int64_t) {
    const std::vector<float> y = downloaded<float>(*gpu_, memory->y);
    return fault_of_product(shape, weights->host().data(), memory->x.data(), y.data(), kSamples);
  };
  return work;
}

ProbeResult GpuProbe::product(const GpuProduct& shape, const Policy& policy) {
  check(shape);
  std::vector<uint8_t> matrix(static_cast<std::size_t>(weight_bytes(shape)));
  fill_random(shape.type, shape.n_rows, shape.n_columns, 1, matrix.data());
  const auto weights = std::make_shared<Weights>(*gpu_, std::move(matrix), max_device_bytes_);
  Repeated work = products(shape, weights);
  ProbeResult result = measured(work, static_cast<double>(weight_bytes(shape)),
                                2.0 * static_cast<double>(shape.n_rows * shape.n_columns) * static_cast<double>(shape.batch), policy);
  weights->say(result);
  return result;
}

ProbeResult GpuProbe::experts(const GpuExperts& shape, const Policy& policy) {
  check(shape);
  std::vector<uint8_t> matrices(static_cast<std::size_t>(weight_bytes(shape)));
  fill_random(shape.type, shape.n_experts * shape.n_rows, shape.n_columns, 1, matrices.data());
  const Weights weights(*gpu_, std::move(matrices), max_device_bytes_);
  const int64_t n_y_rows = shape.batch * shape.n_used;
  const std::vector<float> x = random_values((shape.has_own_rows ? n_y_rows : shape.batch) * shape.n_columns, 7);
  const std::vector<int32_t> ids = random_experts(shape, 11);
  const GpuBytes x_on_device = uploaded(*gpu_, x);
  const GpuBytes ids_on_device = uploaded(*gpu_, ids);
  const GpuBytes y(*gpu_, n_y_rows * shape.n_rows * 4);
  const GpuBytes scratch(*gpu_, std::max<int64_t>(256, scratch_bytes(shape)));
  Repeated work;
  work.most = kMostProducts;
  work.queue = [&](int64_t index) {
    gpu_->multiply_experts(GpuLane::compute, shape, weights.at(index), ids_on_device.as<int32_t>(), x_on_device.as<float>(), y.as<float>(),
                           scratch.data());
  };
  work.spoil = [&](int64_t, int64_t) { gpu_->fill(GpuLane::compute, y.data(), kNoNumber, y.size()); };
  work.fault = [&](int64_t, int64_t) {
    const std::vector<float> got = downloaded<float>(*gpu_, y);
    return fault_of_experts(shape, weights.host().data(), ids.data(), x.data(), got.data(), kSamples);
  };
  std::vector<int32_t> used = ids;
  std::sort(used.begin(), used.end());
  const auto n_distinct = static_cast<double>(std::unique(used.begin(), used.end()) - used.begin());
  const double n_bytes = n_distinct * static_cast<double>(weight_bytes(shape)) / static_cast<double>(shape.n_experts);
  ProbeResult result =
      measured(work, n_bytes, 2.0 * static_cast<double>(shape.n_rows * shape.n_columns) * static_cast<double>(n_y_rows), policy);
  weights.say(result);
  return result;
}

ProbeResult GpuProbe::attention(const AttentionShape& shape, const Policy& policy) {
  check_gpu(shape);
  const int64_t n_values = shape.depth * shape.n_kv_heads * shape.head_size;
  std::vector<uint8_t> cache(static_cast<std::size_t>(2 * 2 * n_values));
  fill_random(WeightType::f16, 2 * shape.depth, n_values / shape.depth, 1, cache.data());
  const Weights caches(*gpu_, std::move(cache), max_device_bytes_);
  const std::vector<float> queries = random_values(shape.batch * shape.n_heads * shape.head_size, 7);
  const GpuBytes queries_on_device = uploaded(*gpu_, queries);
  const GpuBytes out(*gpu_, queries_on_device.size());
  const GpuBytes scratch(*gpu_, std::max<int64_t>(256, gpu_scratch_bytes(shape)));
  Repeated work;
  work.most = kMostProducts;
  work.queue = [&](int64_t index) {
    const uint8_t* keys = caches.at(index);
    gpu_->attend(GpuLane::compute, shape, queries_on_device.as<float>(), keys, keys + 2 * n_values, out.as<float>(), scratch.data());
  };
  work.spoil = [&](int64_t, int64_t) { gpu_->fill(GpuLane::compute, out.data(), kNoNumber, out.size()); };
  work.fault = [&](int64_t, int64_t) {
    const std::vector<float> got = downloaded<float>(*gpu_, out);
    const auto* keys = reinterpret_cast<const uint16_t*>(caches.host().data());
    return fault_of_attention(shape, false, queries.data(), keys, keys + n_values, got.data(), kSamples / 8);
  };
  const double n_flop = 4.0 * static_cast<double>(shape.head_size * shape.n_heads) * static_cast<double>(shape.batch * shape.depth);
  ProbeResult result = measured(work, static_cast<double>(4 * n_values), n_flop, policy);
  caches.say(result);
  return result;
}

ProbeResult GpuProbe::library_product(const GpuProduct& shape, const Policy& policy) {
  check(shape);
  if (shape.type != WeightType::f16) throw std::invalid_argument("type is " + name_of(shape.type) + ", the library multiplies F16");
  std::vector<uint8_t> matrix(static_cast<std::size_t>(weight_bytes(shape)));
  fill_random(shape.type, shape.n_rows, shape.n_columns, 1, matrix.data());
  const Weights weights(*gpu_, std::move(matrix), max_device_bytes_);
  const std::vector<float> x = random_values(shape.batch * shape.n_columns, 7);
  std::vector<uint16_t> halves(x.size());
  std::transform(x.begin(), x.end(), halves.begin(), float_to_half);
  const GpuBytes x_on_device = uploaded(*gpu_, halves);
  const GpuBytes y(*gpu_, shape.batch * shape.n_rows * 4);
  Repeated work;
  work.most = kMostProducts;
  work.queue = [&](int64_t index) {
    gpu_->multiply_by_library(GpuLane::compute, shape, reinterpret_cast<const uint16_t*>(weights.at(index)), x_on_device.as<uint16_t>(),
                              y.as<float>());
  };
  work.spoil = [&](int64_t, int64_t) { gpu_->fill(GpuLane::compute, y.data(), kNoNumber, y.size()); };
  work.fault = [&](int64_t, int64_t) {
    const std::vector<float> got = downloaded<float>(*gpu_, y);
    return fault_of_product(shape, weights.host().data(), x.data(), got.data(), kSamples);
  };
  ProbeResult result = measured(work, static_cast<double>(weight_bytes(shape)),
                                2.0 * static_cast<double>(shape.n_rows * shape.n_columns) * static_cast<double>(shape.batch), policy);
  weights.say(result);
  return result;
}

int64_t GpuProbe::ring_bytes(int64_t chunk_bytes) const {
  const int64_t cold = std::clamp(cold_bytes(), 2 * kVerifiedBytes, kMostRingBytes);
  const int64_t limit = std::min(max_host_bytes_, max_device_bytes_) / 2;
  return std::min(std::max(chunk_bytes, cold), limit) / 16 * 16;
}

CopyRing& GpuProbe::ring(HostMemory memory, int64_t chunk_bytes) {
  const int64_t n_bytes = ring_bytes(chunk_bytes);
  if (ring_ == nullptr || ring_->memory() != memory || ring_->size() < n_bytes) {
    ring_.reset();  // before the new one is taken
    if (n_bytes < 16) throw ProbeError("the probe may not take enough memory to copy any");
    ring_ = std::make_unique<CopyRing>(*gpu_, memory, n_bytes);
  }
  return *ring_;
}

GpuProbe::Repeated GpuProbe::copies(CopyRing& ring, const CopyShape& shape) {
  ring.begin(shape);
  Repeated work;
  work.lane = shape.direction == Direction::up ? GpuLane::up : GpuLane::down;
  work.most = static_cast<int>(std::min({int64_t{kMostQueued}, ring.n_chunks(), std::max<int64_t>(1, kVerifiedBytes / shape.chunk_bytes)}));
  work.queue = [&ring, lane = work.lane](int64_t index) { ring.queue(lane, index); };
  work.spoil = [&ring](int64_t first, int64_t n) { ring.spoil(first, n); };
  work.fault = [&ring](int64_t first, int64_t n) { return ring.fault(first, n); };
  return work;
}

ProbeResult GpuProbe::copy(const CopyShape& shape, const Policy& policy) {
  CopyRing& ring = this->ring(shape.memory, shape.chunk_bytes);
  Repeated work = copies(ring, shape);
  const auto n_bytes = static_cast<double>(shape.chunk_bytes);
  ProbeResult result;
  if (shape.memory == HostMemory::locked) {
    result = measured(work, n_bytes, 0.0, policy);
  } else {
    const Timer& host = steady_timer();
    const auto sample = [&] {
      work.spoil(work.next, work.most);
      const double start = host.now();
      work.queue_next(work.most);
      gpu_->synchronise(work.lane);
      return host.now() - start;
    };
    const auto fault = [&] { return work.fault(work.next - work.n_last, work.n_last); };
    result = result_of(each(measure(sample, fault, policy, host), work.most), n_bytes);
  }
  result.is_cold = ring.size() >= cold_bytes();
  if (!result.is_cold) result.note = "the CPU's caches may hold a part of what is copied";
  return result;
}

double GpuProbe::plain_copy_seconds(Direction direction, int64_t chunk_bytes) {
  constexpr int rounds = 5;
  CopyRing& ring = this->ring(HostMemory::locked, chunk_bytes);
  ring.begin({direction, HostMemory::locked, chunk_bytes, false});
  const int64_t n = std::min<int64_t>(ring.n_chunks(), std::max<int64_t>(4, 4 * kVerifiedBytes / chunk_bytes));
  const GpuLane lane = direction == Direction::up ? GpuLane::up : GpuLane::down;
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round < rounds; ++round) {
    const double start = steady_timer().now();
    for (int64_t i = 0; i < n; ++i) ring.queue(lane, i);
    gpu_->synchronise(lane);
    least = std::min(least, (steady_timer().now() - start) / static_cast<double>(n));
  }
  return least;
}

Sides GpuProbe::copies_both_ways(int64_t chunk_bytes, const Policy& policy) {
  CopyRing& up_ring = ring(HostMemory::locked, chunk_bytes);
  CopyRing down_ring(*gpu_, HostMemory::locked, up_ring.size());
  Repeated up = copies(up_ring, {Direction::up, HostMemory::locked, chunk_bytes, false});
  Repeated down = copies(down_ring, {Direction::down, HostMemory::locked, chunk_bytes, false});
  const auto n_bytes = static_cast<double>(chunk_bytes);
  Sides result;
  result.first_alone = measured(up, n_bytes, 0.0, policy);
  result.second_alone = measured(down, n_bytes, 0.0, policy);
  result.first_beside = measured(up, n_bytes, 0.0, policy, &down);
  result.second_beside = measured(down, n_bytes, 0.0, policy, &up);
  return result;
}

Sides GpuProbe::copies_beside_product(const GpuProduct& shape, int64_t chunk_bytes, const Policy& policy) {
  check(shape);
  std::vector<uint8_t> matrix(static_cast<std::size_t>(weight_bytes(shape)));
  fill_random(shape.type, shape.n_rows, shape.n_columns, 1, matrix.data());
  const auto weights = std::make_shared<Weights>(*gpu_, std::move(matrix), max_device_bytes_ / 2);
  Repeated product = products(shape, weights);
  Repeated up = copies(ring(HostMemory::locked, chunk_bytes), {Direction::up, HostMemory::locked, chunk_bytes, false});
  const auto n_bytes = static_cast<double>(chunk_bytes);
  const auto matrix_bytes = static_cast<double>(weight_bytes(shape));
  const double n_flop = 2.0 * static_cast<double>(shape.n_rows * shape.n_columns) * static_cast<double>(shape.batch);
  Sides result;
  result.first_alone = measured(up, n_bytes, 0.0, policy);
  result.second_alone = measured(product, matrix_bytes, n_flop, policy);
  result.first_beside = measured(up, n_bytes, 0.0, policy, &product);
  result.second_beside = measured(product, matrix_bytes, n_flop, policy, &up);
  return result;
}

namespace {

class CopiesUp final : public CopyWork {
 public:
  CopiesUp(Gpu& gpu, CopyRing& ring, int64_t chunk_bytes) : gpu_(gpu), ring_(ring), piece_bytes_(chunk_bytes) {
    ring.begin({Direction::up, HostMemory::locked, chunk_bytes, false});
  }

  int64_t chunk_bytes() const override { return kAtOnce * piece_bytes_; }
  bool is_cold() const override { return ring_.size() >= cold_bytes(); }
  void start(int64_t n) override {
    first_ = next_;
    ring_.spoil(first_, n * kAtOnce);
  }
  void copy_next() override {
    for (int64_t i = 0; i < kAtOnce; ++i) ring_.queue(GpuLane::up, next_++);
    gpu_.synchronise(GpuLane::up);
  }
  std::string fault() const override { return ring_.fault(first_, next_ - first_); }

 private:
  static constexpr int64_t kAtOnce = 4;  // so that waiting for the GPU takes no part of the time

  Gpu& gpu_;
  CopyRing& ring_;
  int64_t piece_bytes_;
  int64_t first_ = 0;
  int64_t next_ = 0;
};

}  // namespace

std::unique_ptr<CopyWork> GpuProbe::copies_up(int64_t chunk_bytes) {
  return std::make_unique<CopiesUp>(*gpu_, ring(HostMemory::locked, chunk_bytes), chunk_bytes);
}

LockedMemory GpuProbe::lockable(int64_t step_bytes, int64_t limit_bytes, double budget_seconds) {
  if (step_bytes < 1) throw std::invalid_argument("step_bytes is " + std::to_string(step_bytes) + ", must be positive");
  const double start = steady_timer().now();
  std::vector<uint8_t*> steps;
  LockedMemory result;
  while (result.n_bytes + step_bytes <= limit_bytes && steady_timer().now() - start < budget_seconds) {
    uint8_t* step = gpu_->lock(step_bytes);
    if (step == nullptr) {
      result.was_refused = true;
      break;
    }
    steps.push_back(step);
    result.n_bytes += step_bytes;
  }
  for (uint8_t* step : steps) gpu_->unlock(step);
  return result;
}

}  // namespace pshard
