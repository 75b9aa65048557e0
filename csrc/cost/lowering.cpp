#include "cost/lowering.hpp"

#include <algorithm>

namespace pshard {
namespace {

constexpr uint8_t kOnHost = 1;
constexpr uint8_t kOnGpu = 2;

constexpr uint8_t mask_of(Device device) { return device == Device::gpu ? kOnGpu : kOnHost; }

// Seconds to copy the experts that are used. They are stored one after the other, so a copy of the used ones runs over neighbours: the
// expected run at share s is 1 / (1 - s) experts. Nothing moves before the routing has reached the host: one hand-off.
double slice_seconds(const Machine& machine, double whole_bytes, double used_bytes, int64_t n_expert) {
  const double share = used_bytes / whole_bytes;
  const double expert_bytes = whole_bytes / static_cast<double>(std::max<int64_t>(n_expert, 1));
  const double chunk = share >= 1.0 ? whole_bytes : std::min(whole_bytes, expert_bytes / (1.0 - share));
  return machine.up.seconds(used_bytes, chunk) + machine.handoff_to_cpu_seconds;
}

void bring_up(const Machine& machine, double n_bytes, double& bytes, double& seconds) {
  bytes += n_bytes;
  seconds += machine.up.seconds(n_bytes, n_bytes);
}

void send_down(const Machine& machine, double n_bytes, double& bytes, double& seconds) {
  bytes += n_bytes;
  seconds += machine.down.seconds(n_bytes, n_bytes);
}

// Traffic of KV or state that does not live where it is used; `machine` is that of the GPU that has it, or uses it.
void move_cache(const Machine& machine, int64_t cache_bytes, CacheMove move, bool on_gpu, Segment& segment) {
  const auto n_bytes = static_cast<double>(cache_bytes);
  if (move == CacheMove::fetched) {
    if (on_gpu) {
      bring_up(machine, n_bytes, segment.exposed_bytes, segment.exposed_seconds);
    } else {
      send_down(machine, n_bytes, segment.activation_down_bytes, segment.activation_down_seconds);
    }
  }
  if (move == CacheMove::up || move == CacheMove::up_and_down) bring_up(machine, n_bytes, segment.prefetch_bytes, segment.prefetch_seconds);
  if (move == CacheMove::down || move == CacheMove::up_and_down) {
    send_down(machine, n_bytes, segment.write_back_bytes, segment.write_back_seconds);
  }
}

// Copies of a weight whose home is host memory, for an operation on the GPU.
void move_weight(const Machine& machine, const Operation& operation, bool offloaded, double used_bytes, int64_t n_expert,
                 bool routed_in_split, Segment& segment) {
  const auto whole = static_cast<double>(operation.weight->n_bytes);
  if (operation.kind == OpKind::mul_mat_id) {
    const double sliced_seconds = slice_seconds(machine, whole, used_bytes, n_expert);
    if (offloaded) {
      segment.exposed_bytes += used_bytes;
      segment.exposed_seconds += sliced_seconds;
      return;
    }
    bring_up(machine, whole, segment.experts_whole_bytes, segment.experts_whole_seconds);
    segment.experts_sliced_bytes += used_bytes;
    segment.experts_sliced_seconds += sliced_seconds;
    if (routed_in_split) segment.experts_can_slice = false;
  } else if (offloaded) {
    bring_up(machine, whole, segment.exposed_bytes, segment.exposed_seconds);
  } else {
    bring_up(machine, whole, segment.prefetch_bytes, segment.prefetch_seconds);
  }
}

}  // namespace

PricedBlock price_block(const Model& model, const Machines& machines, const Pass& pass, Block block, const Counted& counted) {
  PricedBlock priced;
  const auto& parameters = model.hyperparameters();
  const auto cost_of = [&](const Operation& operation, const Processor& processor, bool is_copied) {
    if (counted && !counted(operation)) return Cost{};
    return operation_cost(operation, processor, parameters.n_expert, parameters.n_expert_used, static_cast<double>(pass.n_tokens),
                          is_copied);
  };
  const Fusion fusion = counted ? Fusion{} : fusion_of(block);
  for (const Machine& machine : machines) {
    GpuCosts& costs = priced.gpus.emplace_back();
    for (const Operation& operation : block.operations) {
      costs.resident.push_back(machine.has_gpu ? cost_of(operation, machine.gpu, false) : Cost{});
      costs.copied.push_back(machine.has_gpu ? cost_of(operation, machine.gpu, true) : Cost{});
    }
    costs.joined = costs.resident;
    if (!machine.has_gpu) continue;
    for (const KernelRun& run : fusion.runs) {
      for (int32_t i = run.first; i <= run.last; ++i) {
        Operation part = block.operations[static_cast<size_t>(i)];
        part.activation_bytes -= fusion.inner_bytes[static_cast<size_t>(i)];
        const Cost cost = cost_of(part, machine.gpu, false);
        costs.joined[static_cast<size_t>(i)] = i == run.first ? cost : without_launch(cost, machine.gpu);
      }
    }
  }
  priced.runs = fusion.runs;
  for (const Operation& operation : block.operations) {
    priced.cpu.push_back(cost_of(operation, machines.host().cpu, false));
    priced.weight_bytes.push_back(weight_bytes_read(operation, parameters.n_expert, parameters.n_expert_used));
  }
  priced.block = std::move(block);
  return priced;
}

namespace {

// By operation: whether it is a part of a run that nothing interrupts, all on one lane of a GPU.
std::vector<uint8_t> joined_operations(const PricedBlock& priced, const PlacedBlock& placed) {
  std::vector<Where> lanes(priced.block.operations.size(), Where::cpu);
  for (const PlacedOperation& operation : placed.operations) lanes[operation.index] = operation.lane;
  std::vector<uint8_t> joined(lanes.size(), 0);
  for (const KernelRun& run : priced.runs) {
    const auto first = static_cast<size_t>(run.first);
    const auto last = static_cast<size_t>(run.last);
    bool is_whole = lanes[first] != Where::cpu;
    for (size_t i = first; i <= last; ++i) is_whole = is_whole && (priced.block.operations[i].is_view || lanes[i] == lanes[first]);
    if (is_whole) std::fill(joined.begin() + run.first, joined.begin() + run.last + 1, uint8_t{1});
  }
  return joined;
}

}  // namespace

LoweredBlock lower(const PricedBlock& priced, const Model& model, const Machines& machines, const BlockPlacement& placement,
                   const Neighbours& neighbours, Device residual) {
  LoweredBlock lowered;
  const Block& block = priced.block;
  const PlacedBlock placed = place(block, placement, neighbours, residual);
  const std::vector<uint8_t> joined = joined_operations(priced, placed);
  for (const PlacedOperation& current : placed.operations) {
    const Operation& operation = block.operations[current.index];
    if (lowered.segments.empty() || lowered.segments.back().backend != current.lane) {
      lowered.segments.push_back(Segment::on(current.lane));
    }
    Segment& segment = lowered.segments.back();
    const bool on_gpu = is_gpu(current.device);
    const bool is_copied = current.weight != WeightMove::none;
    const GpuCosts& gpu = priced.gpus[machines.index_of(current.device)];
    const std::vector<Cost>& on_its_gpu = joined[current.index] != 0 ? gpu.joined : is_copied ? gpu.copied : gpu.resident;
    segment.compute += on_gpu ? on_its_gpu[current.index] : priced.cpu[current.index];
    const Machine& machine = machines.of(current.device);
    for (const ValueMove& value : current.values) {
      const auto n_bytes = static_cast<double>(value.n_bytes);
      // From one GPU to another through the host.
      if (is_gpu(value.from)) send_down(machines.of(value.from), n_bytes, segment.activation_down_bytes, segment.activation_down_seconds);
      if (on_gpu) bring_up(machine, n_bytes, segment.activation_up_bytes, segment.activation_up_seconds);
    }
    move_cache(on_gpu ? machine : machines.of(placement.cache_of(operation)), operation.cache_bytes, current.cache, on_gpu, segment);
    const double weight_bytes = priced.weight_bytes[current.index];
    if (!on_gpu) {
      segment.dram_bytes += weight_bytes + static_cast<double>(operation.cache_bytes);
    } else if (current.weight != WeightMove::none) {
      const bool routed_in_split = placement.of(Group::router) == placement.of(operation.group);
      move_weight(machine, operation, current.weight == WeightMove::offloaded, weight_bytes, model.hyperparameters().n_expert,
                  routed_in_split, segment);
    }
  }
  lowered.residual = placed.residual;
  return lowered;
}

namespace {

// One event wait where work goes on in another stream of the GPU.
double lane_change_seconds(const Machine& machine, Where from, Where to) {
  return from != to && from != Where::cpu && to != Where::cpu ? machine.gpu.op_seconds : 0.0;
}

// Which operations run on the same device whatever the neighbouring blocks are. Undecided operations follow a GPU neighbour, so what is on
// the GPU between two host blocks stays there; on the host they are certain only between decided operations of the block.
std::vector<bool> certain_devices(const std::vector<ScheduledOperation>& between_host_blocks) {
  const size_t n = between_host_blocks.size();
  std::vector<bool> certain(n, false);
  size_t first = n;
  size_t last = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!between_host_blocks[i].decided) continue;
    first = std::min(first, i);
    last = i;
  }
  for (size_t i = 0; i < n; ++i) certain[i] = between_host_blocks[i].device == Device::gpu || (first <= i && i <= last);
  return certain;
}

}  // namespace

PassBound bound(const PricedBlock& priced, const Model& model, const Machine& machine, const BlockPlacement& placement) {
  PassBound result;
  const Block& block = priced.block;
  const std::vector<ScheduledOperation> scheduled = schedule(block, placement, {});
  const std::vector<bool> certain = certain_devices(scheduled);
  std::vector<uint8_t> known_on(block.values.size(), 0);  // devices that certainly hold a value; 0: not known
  const auto at = [](int32_t value) { return static_cast<size_t>(value); };
  const auto gpu_seconds = [&costs = priced.gpus.front()](size_t i) {
    return std::min({costs.resident[i].seconds, costs.copied[i].seconds, costs.joined[i].seconds});
  };
  const ScheduledOperation* before = nullptr;
  const ScheduledOperation* decided_before = nullptr;
  double host_bytes = 0.0;
  for (size_t i = 0; i < block.operations.size(); ++i) {
    const Operation& operation = block.operations[i];
    if (operation.is_view) {
      if (operation.output != kNoValue && operation.inputs[0] != kNoValue)
        known_on[at(operation.output)] = known_on[at(operation.inputs[0])];
      continue;
    }
    if (!certain[i]) {
      result.serial_seconds += machine.has_gpu ? std::min(gpu_seconds(i), priced.cpu[i].seconds) : priced.cpu[i].seconds;
      continue;
    }
    const Device device = scheduled[i].device;
    const bool on_gpu = device == Device::gpu;
    result.serial_seconds += on_gpu ? gpu_seconds(i) : priced.cpu[i].seconds;
    if (before != nullptr && before->device != device) {
      result.serial_seconds += on_gpu ? machine.handoff_to_gpu_seconds : machine.handoff_to_cpu_seconds;
    }
    before = &scheduled[i];
    if (scheduled[i].decided) {
      if (decided_before != nullptr) result.serial_seconds += lane_change_seconds(machine, decided_before->lane, scheduled[i].lane);
      decided_before = &scheduled[i];
    }
    for (const int32_t input : operation.inputs) {
      if (!is_value(input) || known_on[at(input)] == 0 || (known_on[at(input)] & mask_of(device)) != 0) continue;
      const auto n_bytes = static_cast<double>(block.values[at(input)].n_bytes);
      result.serial_seconds += on_gpu ? machine.up.seconds(n_bytes, n_bytes) : machine.down.seconds(n_bytes, n_bytes);
      known_on[at(input)] |= mask_of(device);
    }
    if (operation.output != kNoValue) known_on[at(operation.output)] = mask_of(device);
    const Where home = placement.of(operation.group);
    Segment cache;
    move_cache(machine, operation.cache_bytes, cache_move(operation, scheduled[i], home), on_gpu, cache);
    result.serial_seconds += cache.write_back_seconds;
    result.up_seconds += cache.prefetch_seconds;
    host_bytes += cache.prefetch_bytes;
    if (!on_gpu) {
      host_bytes += priced.weight_bytes[i];
    } else if (weight_move(operation, scheduled[i], placement.home_of(operation)) != WeightMove::none) {
      Segment copy;  // of this weight alone: not all experts of a block need come alike
      move_weight(machine, operation, scheduled[i].copies_weight, priced.weight_bytes[i], model.hyperparameters().n_expert,
                  placement.of(Group::router) == home, copy);
      const bool slices = copy.experts_can_slice && copy.experts_sliced_seconds < copy.experts_whole_seconds;
      result.serial_seconds += copy.exposed_seconds;
      result.up_seconds +=
          copy.exposed_seconds + copy.prefetch_seconds + (slices ? copy.experts_sliced_seconds : copy.experts_whole_seconds);
      host_bytes += copy.exposed_bytes + copy.prefetch_bytes + std::min(copy.experts_whole_bytes, copy.experts_sliced_bytes);
    }
  }
  result.host_memory_seconds = host_bytes / machine.host_bytes_per_second;
  return result;
}

PassBound bound_between(const PricedBlock& block, const Machine& machine, const BlockEnds& before, const BlockEnds& after) {
  PassBound result;
  result.serial_seconds = lane_change_seconds(machine, before.last, after.first);
  const bool to_gpu = after.first != Where::cpu;
  if ((before.last != Where::cpu) == to_gpu || block.block.residual_in == kNoValue) return result;
  const auto n_bytes = static_cast<double>(block.block.values[static_cast<size_t>(block.block.residual_in)].n_bytes);
  result.serial_seconds = to_gpu ? machine.handoff_to_gpu_seconds + machine.up.seconds(n_bytes, n_bytes)
                                 : machine.handoff_to_cpu_seconds + machine.down.seconds(n_bytes, n_bytes);
  return result;
}

int64_t host_home_bytes(const PricedBlock& block, const BlockPlacement& placement) {
  int64_t bytes = 0;
  for (const Operation& operation : block.block.operations) {
    if (operation.weight != nullptr && !is_pinned(placement.home_of(operation))) bytes += operation.weight->n_bytes;
  }
  return bytes;
}

}  // namespace pshard
