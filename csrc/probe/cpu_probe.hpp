// What this machine's CPU and host memory reach, operation by operation. Every result is verified, and ProbeError thrown when it is wrong.
// Nothing but the operation is timed: threads are awake, pages are touched, and what is read lies in no cache.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "probe/attention.hpp"
#include "probe/copy_work.hpp"
#include "probe/cpu_path.hpp"
#include "probe/matmul.hpp"
#include "probe/measure.hpp"
#include "probe/memory.hpp"
#include "probe/scan.hpp"
#include "probe/threads.hpp"

namespace pshard {

// What one sample did, and how long it took.
struct ProbeResult {
  Measurement time;
  double n_bytes = 0.0;  // weights or cache read, or bytes copied
  double n_flop = 0.0;   // a multiplication and an addition are two
  int n_threads = 0;
  bool is_cold = true;  // no sample found what it read in a cache
  std::string note;     // why not, or how the operating system was asked

  [[nodiscard]] double bytes_per_second() const { return n_bytes / time.median_seconds; }
  [[nodiscard]] double flop_per_second() const { return n_flop / time.median_seconds; }
};

struct ProductShape {
  WeightType type = WeightType::f16;
  Layout layout = Layout::plain;
  int64_t n_rows = 0;     // outputs
  int64_t n_columns = 0;  // inputs
  int64_t batch = 1;      // rows of activations; of each expert that is used
  int64_t n_used = 1;     // matrices, all different, that one sample multiplies: 1, or the experts that are used
  Routing routing = Routing::dense;
};

// Each side alone and under the other: copies by the first worker, a product by the others.
struct Contention {
  ProbeResult copy_alone;
  ProbeResult copy_under_product;
  ProbeResult product_alone;
  ProbeResult product_under_copy;
};

struct OpCost {
  ProbeResult op;    // one of many operations in a running pass that do nothing: hand it out, wait for all
  ProbeResult wake;  // from a sleeping pool to the end of its first operation: once per pass
};

struct Peak {
  ProbeResult bytes;   // products of 8-bit numbers, summed in 32 bits
  ProbeResult floats;  // of 32 bits
};

class CpuProbe {
 public:
  // One worker on each of `cpus`. `max_bytes` bounds the memory that a probe takes.
  CpuProbe(const std::vector<int>& cpus, int64_t max_bytes, CpuPath path);
  // With kernels of one's own, which `path` names.
  CpuProbe(const std::vector<int>& cpus, int64_t max_bytes, CpuPath path, const Kernels& kernels);

  [[nodiscard]] CpuPath path() const { return path_; }
  [[nodiscard]] int size() const { return pool_.size(); }

  // Sums an array far larger than the caches, each thread its own part, which it touched first.
  ProbeResult read(int n_threads, const Policy& policy);

  // A product with one matrix, or with `n_used` experts. The next sample takes other copies of the weights.
  ProbeResult product(const ProductShape& shape, int n_threads, const Policy& policy);

  // Fused attention. The next sample takes another cache.
  ProbeResult attention(const AttentionShape& shape, int n_threads, const Policy& policy);

  // A scan of a recurrent layer. The next sample takes another state.
  ProbeResult scan(const ScanShape& shape, int n_threads, const Policy& policy);

  // Copies go from memory to memory, `chunk_bytes` at a time, into `room_bytes` in turn. Throws ProbeError where there is only one worker.
  Contention contention(const ProductShape& shape, int64_t chunk_bytes, const Policy& policy,
                        int64_t room_bytes = std::numeric_limits<int64_t>::max());
  // Others that the first worker starts, such as those to a GPU.
  Contention contention(const ProductShape& shape, CopyWork& copies, const Policy& policy);

  OpCost op_cost(int n_threads, const Policy& policy);

  // Multiply-adds in registers: what no kernel of this instruction set exceeds.
  Peak peak(int n_threads, const Policy& policy);

 private:
  // Copies of one matrix or cache in memory, enough of them that a round through all leaves none in a cache.
  struct Copies {
    int64_t bytes = 0;
    int64_t n = 0;
    int64_t offset = 0;  // of the first one, from the start of a page
    bool is_cold = true;
    std::string note;
  };
  // What the copies hold: a matrix, or a cache with a row of keys and one of values for each cell.
  struct Content {
    enum class Kind : uint8_t { plain, interleaved, cache };
    WeightType type = WeightType::f16;
    WeightType value_type = WeightType::f16;
    int64_t n_rows = 0;
    int64_t n_columns = 0;
    Kind kind = Kind::plain;
    bool operator==(const Content&) const = default;
  };
  void require_threads(int n_threads) const;
  [[nodiscard]] Copies plan_copies(int64_t bytes, int64_t least, int64_t limit_bytes) const;
  Copies lay_out(const Matmul& matmul, const ProductShape& shape, int64_t limit_bytes);
  Copies lay_out_cache(const Attention& attention, const AttentionShape& shape);
  void take_memory(int64_t n_bytes);
  void repeat_first(const Copies& copies);
  void write_back(const Copies& copies);
  [[nodiscard]] std::vector<const uint8_t*> next_copies(const Copies& copies, int64_t n);

  ThreadPool pool_;
  int64_t max_bytes_;
  const Kernels& kernels_;
  CpuPath path_;
  Buffer memory_;  // kept between probes: touching pages takes longer than most of them
  Buffer plain_;   // the matrix that memory_ holds copies of, as a file holds it
  Content laid_out_;
  int64_t n_laid_out_ = 0;
  int64_t next_copy_ = 0;
};

}  // namespace pshard
