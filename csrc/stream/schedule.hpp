// What the executor runs: the splits of one pass in order, each with its operations and with all that has to be copied for it. Made of a
// placement by the rules that the cost model prices; which strategy chose the placement is not known here. Linear in the operations.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/forward.hpp"
#include "model/moves.hpp"
#include "model/placement.hpp"
#include "probe/attention.hpp"
#include "probe/blocks.hpp"

namespace pshard {

// The type that kernels know it by; none where the CPU or GPUs have no kernel, since it may come to lie on either.
[[nodiscard]] std::optional<WeightType> kernel_type(const DataType& type);

struct StreamTensor {
  std::string name;
  DataType type;
  std::array<int64_t, 4> shape{1, 1, 1, 1};
  int64_t n_bytes = 0;
  Device home = Device::host;  // where it is resident
};

// One operation that is executed. Others, listed in `Schedule::left_out`, have no kernel or too little to do.
struct StreamOperation {
  OpKind kind = OpKind::mul_mat;
  int32_t tensor = -1;  // index into Schedule::tensors
  int32_t layer = -1;
  WeightType type = WeightType::f16;
  int64_t n = 0, k = 0, m = 0;  // y[m][n] = x[m][k] times the weight; of experts, m counts (token, expert) rows
  bool has_own_rows = false;    // of experts: each row has its own x; otherwise those of a token share one
  AttentionShape attention;
  int64_t cache_offset = 0;  // written there, by a copy
  int64_t cache_bytes = 0;   // read or written
};

struct CachePart {
  int32_t layer = 0;
  int64_t offset = 0;
  int64_t n_bytes = 0;
};

struct Split {
  Where lane = Where::cpu;
  Device device = Device::host;
  std::vector<StreamOperation> operations;
  // Copied to the device: ahead into the slot of the lane, or when the split is about to run. Indices into Schedule::tensors.
  std::vector<int32_t> streamed;
  std::vector<int32_t> streamed_experts;
  std::vector<int32_t> offloaded;
  std::vector<int32_t> offloaded_experts;
  std::vector<CachePart> cache_up;
  std::vector<CachePart> cache_down;     // behind the split
  std::vector<CachePart> cache_fetched;  // by the device that has not got the layer's cache
  std::vector<ValueMove> values;
  bool can_slice = true;     // the routing of the streamed experts is known when the split begins
  bool is_sliced = false;    // so only the experts that are used are copied, when it is
  int32_t first_layer = -1;  // of those that it executes something of
  int64_t n_layers = 0;

  [[nodiscard]] bool streams() const { return !streamed.empty() || !streamed_experts.empty() || !cache_up.empty(); }
};

struct LayerCache {
  Device home = Device::host;
  int64_t n_bytes = 0;     // that the pass uses
  int64_t home_bytes = 0;  // that are reserved for it; keys, then values
};

struct LeftOut {
  std::string what;
  int64_t count = 0;
  int64_t weight_bytes = 0;
};

struct Schedule {
  int64_t n_tokens = 1;
  int64_t n_expert = 0;
  int64_t n_expert_used = 0;
  int n_gpu = 0;
  std::vector<StreamTensor> tensors;
  std::vector<LayerCache> caches;  // by layer
  std::vector<Split> splits;
  std::vector<LeftOut> left_out;
  int64_t input_bytes = 0;   // graph inputs, to the GPU once per pass
  int64_t output_bytes = 0;  // logits, from the GPU; 0 where the host computes them
  Device output_device = Device::host;
  double flop = 0.0;         // of what is executed
  int64_t weight_bytes = 0;  // of the products that are executed, experts whole
};

// A lane holds the copies of one split: whether those of this one wait until the split before has ended.
[[nodiscard]] bool lane_is_taken(const Schedule& schedule, size_t split);

// Whether an operation of the model is executed: products whose weights have a native kernel, fused attention over an F16 cache, and writes
// into the cache.
class Executed {
 public:
  Executed(const Model& model, const Pass& pass);
  [[nodiscard]] bool operator()(const Operation& operation) const { return why_not(operation) == nullptr; }
  // nullptr where it is executed.
  [[nodiscard]] const char* why_not(const Operation& operation) const;

 private:
  int64_t n_expert_;
  bool attends_;
};

// `cache_bytes`: what is reserved for each layer's cache or state. Throws std::invalid_argument where the pass has several sequences.
[[nodiscard]] Schedule make_schedule(const Model& model, const Placement& placement, const Pass& pass,
                                     const std::vector<int64_t>& cache_bytes);

}  // namespace pshard
