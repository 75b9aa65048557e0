#include "probe/cpu_probe.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int64_t kReadAlignment = 4096;
// Where llama.cpp's caches begin, behind the start of a page: malloc puts large memory there that is to be aligned to 64 bytes. The cells
// of a head then lie across one pair of cache lines more.
constexpr int64_t kCacheOffset = 64;
constexpr double kReadFactor = 2.0;  // times what must lie between two reads: prefetchers and pages reach their pace

std::string mebibytes(int64_t n_bytes) { return std::to_string(n_bytes >> 20) + " MiB"; }

}  // namespace

CpuProbe::CpuProbe(const std::vector<int>& cpus, int64_t max_bytes, CpuPath path) : CpuProbe(cpus, max_bytes, path, kernels(path)) {}

CpuProbe::CpuProbe(const std::vector<int>& cpus, int64_t max_bytes, CpuPath path, const Kernels& kernels)
    : pool_(cpus), max_bytes_(max_bytes), kernels_(kernels), path_(path) {
  if (max_bytes < 1) throw std::invalid_argument("max_bytes is " + std::to_string(max_bytes) + ", must be positive");
}

void CpuProbe::require_threads(int n_threads) const {
  if (n_threads >= 1 && n_threads <= size()) return;
  throw std::invalid_argument("n_threads is " + std::to_string(n_threads) + ", the probe has " + std::to_string(size()) + " CPUs");
}

ProbeResult CpuProbe::read(int n_threads, const Policy& policy) {
  require_threads(n_threads);
  const auto wanted = static_cast<int64_t>(kReadFactor * static_cast<double>(cold_bytes()));
  const int64_t part = std::min(wanted, max_bytes_) / n_threads / kReadAlignment * kReadAlignment;
  if (part < kReadAlignment)
    throw ProbeError("max_bytes is " + std::to_string(max_bytes_) + ", too few for " + std::to_string(n_threads) + " threads");
  const int64_t words = part / 8;
  take_memory(0);
  const Buffer array(part * n_threads);
  std::vector<uint64_t> expected(static_cast<std::size_t>(n_threads));
  std::vector<uint64_t> sums(expected.size());
  const auto part_of = [&](int thread) { return array.as<uint64_t>() + thread * words; };
  pool_.run(
      [&](int thread) {
        Random random(static_cast<uint64_t>(thread) + 1);
        uint64_t value = random.next();
        uint64_t sum = 0;
        const uint64_t step = random.next() | 1U;
        for (int64_t i = 0; i < words; ++i, value += step) {
          part_of(thread)[i] = value;
          sum += value;
        }
        expected[static_cast<std::size_t>(thread)] = sum;
      },
      steady_timer(), n_threads);

  ProbeResult result;
  result.time = measure(
      [&] {
        std::fill(sums.begin(), sums.end(), 0);
        return pool_.run([&](int thread) { sums[static_cast<std::size_t>(thread)] = kernels_.sum(part_of(thread), words); }, steady_timer(),
                         n_threads);
      },
      [&] { return sums == expected ? std::string() : "the sum of the array is not what was written"; }, policy, steady_timer());
  result.n_bytes = static_cast<double>(part * n_threads);
  result.n_threads = n_threads;
  result.is_cold = part * n_threads >= cold_bytes();
  if (!result.is_cold) result.note = mebibytes(part * n_threads) + " were read, the caches hold " + mebibytes(last_level_cache_bytes());
  return result;
}

CpuProbe::Copies CpuProbe::plan_copies(int64_t bytes, int64_t least, int64_t limit_bytes) const {
  Copies copies;
  copies.bytes = (bytes + 63) / 64 * 64;
  const int64_t wanted = std::max(least, (cold_bytes() + copies.bytes - 1) / copies.bytes);
  copies.n = std::min(wanted, limit_bytes / copies.bytes);
  if (copies.n < least) {
    throw ProbeError(std::to_string(least) + " times " + mebibytes(copies.bytes) + " are needed, max_bytes allows " +
                     mebibytes(limit_bytes) + "; close programs, or probe a smaller shape");
  }
  copies.is_cold = copies.n * copies.bytes >= cold_bytes();
  if (!copies.is_cold) {
    copies.note = "samples read " + mebibytes(copies.n * copies.bytes) + " in turn, fewer than the " + mebibytes(cold_bytes()) +
                  " that keep reads out of the caches";
  }
  return copies;
}

// What was laid out in it is lost.
void CpuProbe::take_memory(int64_t n_bytes) {
  n_laid_out_ = 0;
  if (memory_.size() >= n_bytes && n_bytes > 0) return;
  memory_ = Buffer();  // before the new one is taken
  if (n_bytes > 0) memory_ = Buffer(n_bytes);
}

void CpuProbe::repeat_first(const Copies& copies) {
  uint8_t* first = memory_.data() + copies.offset;
  const std::function<void(int)> repeat = [&](int thread) {
    for (int64_t i = 1 + thread; i < copies.n; i += pool_.size()) {
      std::memcpy(first + i * copies.bytes, first, static_cast<std::size_t>(copies.bytes));
    }
  };
  pool_.run(repeat, steady_timer());
}

// Reads all copies once: caches full of what was just written would write it back while the first samples read.
void CpuProbe::write_back(const Copies& copies) {
  const int64_t words = copies.n * copies.bytes / 8 / pool_.size() / kSumWords * kSumWords;
  pool_.run([&](int thread) { static_cast<void>(kernels_.sum(memory_.as<uint64_t>() + thread * words, words)); }, steady_timer());
}

std::vector<const uint8_t*> CpuProbe::next_copies(const Copies& copies, int64_t n) {
  std::vector<const uint8_t*> next(static_cast<std::size_t>(n));
  for (const uint8_t*& copy : next) copy = memory_.data() + copies.offset + next_copy_++ % copies.n * copies.bytes;
  return next;
}

CpuProbe::Copies CpuProbe::lay_out(const Matmul& matmul, const ProductShape& shape, int64_t limit_bytes) {
  const Copies copies = plan_copies(matmul.weight_bytes(), shape.n_used, limit_bytes);
  const Content content{shape.type, shape.type, shape.n_rows, shape.n_columns,
                        shape.layout == Layout::plain ? Content::Kind::plain : Content::Kind::interleaved};
  if (n_laid_out_ >= copies.n && laid_out_ == content) return copies;
  take_memory(copies.n * copies.bytes);
  if (plain_.size() < copies.bytes) plain_ = Buffer(copies.bytes);
  const int64_t stride = row_bytes(shape.type, shape.n_columns);
  const int64_t group = kGroupRows;
  const int64_t groups = (shape.n_rows + group - 1) / group;
  pool_.run(
      [&](int thread) {
        for (int64_t g = thread; g < groups; g += pool_.size()) {
          const int64_t first = g * group;
          const int64_t n = std::min(group, shape.n_rows - first);
          fill_random(shape.type, n, shape.n_columns, static_cast<uint64_t>(g), plain_.data() + first * stride);
          if (shape.layout == Layout::plain) {
            std::memcpy(memory_.data() + first * stride, plain_.data() + first * stride, static_cast<std::size_t>(n * stride));
          } else {
            interleave_rows(shape.type, plain_.data() + first * stride, n, shape.n_columns, memory_.data() + first * stride);
          }
        }
      },
      steady_timer());
  repeat_first(copies);
  write_back(copies);
  laid_out_ = content;
  n_laid_out_ = copies.n;
  return copies;
}

ProbeResult CpuProbe::product(const ProductShape& shape, int n_threads, const Policy& policy) {
  require_threads(n_threads);
  if (shape.n_used < 1) throw std::invalid_argument("n_used is " + std::to_string(shape.n_used) + ", must be positive");
  Matmul matmul(kernels_, shape.type, shape.layout, shape.n_rows, shape.n_columns, shape.batch, n_threads, shape.routing);
  const Copies copies = lay_out(matmul, shape, max_bytes_);
  ProbeResult result;
  result.time = measure(
      [&] {
        matmul.start(next_copies(copies, shape.n_used));
        return pool_.run([&](int thread) { matmul.run(thread); }, steady_timer(), n_threads);
      },
      [&] {
        const std::string fault = matmul.fault(plain_.data());
        matmul.spoil_output();
        return fault;
      },
      policy, steady_timer());
  result.n_bytes = static_cast<double>(matmul.weight_bytes() * shape.n_used);
  result.n_flop = matmul.n_flop() * static_cast<double>(shape.n_used);
  result.n_threads = n_threads;
  result.is_cold = copies.is_cold;
  result.note = copies.note;
  return result;
}

CpuProbe::Copies CpuProbe::lay_out_cache(const Attention& attention, const AttentionShape& shape) {
  Copies copies = plan_copies(attention.cache_bytes(), 1, max_bytes_ - kCacheOffset);
  copies.offset = kCacheOffset;
  const Content content{shape.key_type, shape.value_type, shape.depth, shape.n_kv_heads * shape.head_size, Content::Kind::cache};
  if (n_laid_out_ >= copies.n && laid_out_ == content) return copies;
  take_memory(copies.offset + copies.n * copies.bytes);
  const int64_t columns = shape.n_kv_heads * shape.head_size;
  const int64_t key_bytes = row_bytes(shape.key_type, columns);
  const int64_t value_bytes = row_bytes(shape.value_type, columns);
  uint8_t* keys = memory_.data() + copies.offset;
  uint8_t* values = keys + shape.depth * key_bytes;
  pool_.run(
      [&](int thread) {
        for (int64_t cell = thread; cell < shape.depth; cell += pool_.size()) {
          const auto seed = static_cast<uint64_t>(2 * cell);
          fill_random(shape.key_type, 1, columns, seed, keys + cell * key_bytes);
          fill_random(shape.value_type, 1, columns, seed + 1, values + cell * value_bytes);
        }
      },
      steady_timer());
  repeat_first(copies);
  write_back(copies);
  laid_out_ = content;
  n_laid_out_ = copies.n;
  return copies;
}

ProbeResult CpuProbe::attention(const AttentionShape& shape, int n_threads, const Policy& policy) {
  require_threads(n_threads);
  Attention attention(kernels_, shape, n_threads);
  const Copies copies = lay_out_cache(attention, shape);
  ProbeResult result;
  result.time = measure(
      [&] {
        attention.start(next_copies(copies, 1).front());
        return pool_.run([&](int thread) { attention.run(thread); }, steady_timer(), n_threads);
      },
      [&] {
        const std::string fault = attention.fault();
        attention.spoil_output();
        return fault;
      },
      policy, steady_timer());
  result.n_bytes = static_cast<double>(attention.cache_bytes());
  result.n_flop = attention.n_flop();
  result.n_threads = n_threads;
  result.is_cold = copies.is_cold;
  result.note = copies.note;
  return result;
}

ProbeResult CpuProbe::scan(const ScanShape& shape, int n_threads, const Policy& policy) {
  require_threads(n_threads);
  Scan scan(kernels_, shape, n_threads);
  const Copies copies = plan_copies(scan.state_bytes(), 1, max_bytes_);
  take_memory(copies.n * copies.bytes);
  Random random(1);
  for (int64_t i = 0; i < scan.state_bytes() / 4; ++i) memory_.as<float>()[i] = random.next_float();
  repeat_first(copies);
  write_back(copies);
  ProbeResult result;
  result.time = measure(
      [&] {
        scan.start(reinterpret_cast<const float*>(next_copies(copies, 1).front()));
        return pool_.run([&](int thread) { scan.run(thread); }, steady_timer(), n_threads);
      },
      [&] {
        const std::string fault = scan.fault();
        scan.spoil_output();
        return fault;
      },
      policy, steady_timer());
  result.n_bytes = static_cast<double>(scan.state_bytes());
  result.n_flop = scan.n_flop();
  result.n_threads = n_threads;
  result.is_cold = copies.is_cold;
  result.note = copies.note;
  return result;
}

}  // namespace pshard
