#include "memory/kernel_buffers.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace pshard {

namespace {

constexpr int64_t kHalfBytes = 2;
// Activations of a quantised product: 8-bit blocks with their scale, in rows padded to 512 values.
constexpr int64_t kBlockElements = 32;
constexpr int64_t kBlockBytes = 36;
constexpr int64_t kRowPadding = 512;

int64_t pad(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int64_t pool_bytes(const Operation& operation, const Block& block) {
  const int64_t n = operation.n;
  const int64_t k = operation.k;
  const int64_t m = operation.m;
  switch (operation.kind) {
    case OpKind::mul_mat:
    case OpKind::mul_mat_id:
      if (operation.weight != nullptr && operation.weight->type.block_elements > 1) {
        return m * pad(k, kRowPadding) / kBlockElements * kBlockBytes;
      }
      return kHalfBytes * m * (k + n);  // the activations as f16, and the product before it is widened
    case OpKind::attention_kq: {
      const int64_t batch = block.values[static_cast<size_t>(operation.output)].n_bytes / (4 * n * m);
      return kHalfBytes * m * (k + n) * batch;
    }
    default:
      return 0;
  }
}

// By group: a block may run on several devices.
using GroupDemand = std::vector<std::pair<Group, KernelDemand>>;

GroupDemand demand_of(const Block& block) {
  std::map<Group, KernelDemand> by_group;
  for (const Operation& operation : block.operations) {
    if (operation.is_view) continue;
    KernelDemand& demand = by_group[operation.group];
    ++demand.n_kernels;
    demand.pool_bytes = std::max(demand.pool_bytes, pool_bytes(operation, block));
  }
  return {by_group.begin(), by_group.end()};
}

void add(std::vector<KernelDemand>& gpus, Where where, const KernelDemand& demand) {
  if (!is_pinned(where)) return;
  KernelDemand& gpu = gpus[static_cast<size_t>(gpu_of(where))];
  gpu.n_kernels += demand.n_kernels;
  gpu.pool_bytes = std::max(gpu.pool_bytes, demand.pool_bytes);
}

}  // namespace

std::vector<KernelDemand> kernel_demand(const Model& model, const Placement& placement, const ContextParameters& context,
                                        int64_t n_tokens) {
  const std::vector<Layer>& layers = model.layers();
  check(placement, layers.size());
  const Pass pass = reserved_pass(model, context, n_tokens);
  std::vector<KernelDemand> gpus(static_cast<size_t>(placement.n_gpu));
  std::map<int32_t, GroupDemand> by_class;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto [found, is_new] = by_class.try_emplace(layers[i].layer_class);
    if (is_new) found->second = demand_of(layer_block(model, layers[i], pass, false));
    for (const auto& [group, demand] : found->second) {
      const bool is_of_layer = static_cast<int>(group) < kLayerGroupCount;  // Gemma 3n's first layer multiplies by what is with the head
      add(gpus, is_of_layer ? placement.layer(i)[group] : placement.head, demand);
    }
  }
  for (const auto& [group, demand] : demand_of(head_block(model, pass))) add(gpus, placement.head, demand);
  return gpus;
}

}  // namespace pshard
