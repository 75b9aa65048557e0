#include "model/schedule.hpp"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

namespace pshard {

namespace {

// What the operation's own weight or cache says. Rope and fused attention ignore their small tensors, as in llama.cpp.
ScheduledOperation decide(const Operation& operation, const BlockPlacement& placement) {
  ScheduledOperation result;
  if (operation.is_view) return result;
  const auto run_on = [&](Where where) {
    result.decided = true;
    result.lane = where;
  };
  if (placement.ties_norms && operation.is_norm) {
    run_on(placement.layer.device);
    return result;
  }
  if (placement.ties_heads && operation.joins_heads) {
    run_on(Where::cpu);
    return result;
  }
  const bool writes_cache = operation.kind == OpKind::copy && operation.output == kNoValue;
  const bool weight_decides = operation.weight != nullptr && operation.weight_decides;
  if (!weight_decides && !writes_cache) return result;
  Where where = weight_decides ? placement.weight_of(operation) : placement.of(operation);
  // Whichever lane the next layer has on the same device: state that is loaded for it does not take this one apart.
  const Where own = placement.streams() ? placement.of(Group::norms) : Where::pinned;
  if (operation.is_for_next_layer && device_of(where) == device_of(own)) where = own;
  run_on(where);
  if (where == Where::cpu && operation.weight != nullptr && !operation.host_only && placement.op_offload &&
      operation.offload_rows >= kOffloadMinTokens) {
    run_on(Where::pinned);
    result.copies_weight = true;
  }
  return result;
}

// The runtime gives each operation of a layer that streams a lane: that in which its operands were computed, or the layer's own where they
// come from several lanes or from the layer before.
void follow_operands(const Block& block, Where own, std::vector<ScheduledOperation>& scheduled) {
  std::vector<std::optional<Where>> lane_of(block.values.size());  // as far as the runtime sees it
  if (block.residual_in != kNoValue) lane_of[static_cast<size_t>(block.residual_in)] = own;
  for (size_t i = 0; i < scheduled.size(); ++i) {
    const Operation& operation = block.operations[i];
    std::optional<Where> lane;
    for (const int32_t input : operation.inputs) {
      const std::optional<Where> from = is_value(input) ? lane_of[static_cast<size_t>(input)] : std::nullopt;
      if (from) lane = lane.value_or(*from) == *from ? *from : own;
    }
    if (!scheduled[i].decided) {
      scheduled[i].decided = true;
      scheduled[i].lane = operation.host_only ? Where::cpu : lane.value_or(own);
    }
    if (operation.output == kNoValue) continue;
    const auto output = static_cast<size_t>(operation.output);
    if (!operation.is_view) lane = scheduled[i].lane;
    if (block.values[output].is_named) lane_of[output] = lane;
  }
}

// Everything that needs no neighbours.
std::vector<ScheduledOperation> decide(const Block& block, const BlockPlacement& placement) {
  std::vector<ScheduledOperation> result;
  result.reserve(block.operations.size());
  for (const Operation& operation : block.operations) result.push_back(decide(operation, placement));
  if (placement.streams()) follow_operands(block, placement.of(Group::norms), result);
  return result;
}

// A GPU has no kernel for it, or finds a weight among its operands that lies on another GPU.
bool runs_on(const Operation& operation, const BlockPlacement& placement, Where lane) {
  if (lane == Where::cpu) return true;
  if (operation.host_only) return false;
  if (operation.weight == nullptr || operation.weight_decides || operation.weight_is_viewed) return true;
  const Where home = placement.weight_of(operation);
  return !is_pinned(home) || device_of(home) == device_of(lane);
}

// Of what no neighbour can run: where most of its operands are.
Where lane_of_operands(const Operation& operation, const BlockPlacement& placement) {
  const bool reads_host = operation.reads_cache() && placement.cache_of(operation) == Where::cpu;
  return operation.host_only || reads_host ? Where::cpu : placement.weight_of(operation);
}

// Operations join a GPU before them, else one behind; what is left joins any neighbour that can run it.
void follow_neighbours(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours,
                       std::vector<ScheduledOperation>& scheduled) {
  const size_t n = scheduled.size();
  std::vector<bool> is_placed(n);
  for (size_t i = 0; i < n; ++i) is_placed[i] = scheduled[i].decided;
  const auto follow = [&](size_t i, Where& beside, bool joins_host) {
    if (is_placed[i]) {
      if (scheduled[i].decided || device_of(scheduled[i].lane) != device_of(beside)) beside = scheduled[i].lane;
      return;
    }
    const Operation& operation = block.operations[i];
    if (operation.is_view || (beside == Where::cpu && !joins_host) || !runs_on(operation, placement, beside)) return;
    // Layers that are resident stay out of the lanes beside them; only what belongs to no layer joins one.
    scheduled[i].lane = is_streamed(beside) && operation.group < Group::embedding ? Where::pinned : beside;
    is_placed[i] = true;
  };
  for (const bool joins_host : {false, true}) {
    Where before = neighbours.before;
    for (size_t i = 0; i < n; ++i) follow(i, before, joins_host);
    Where after = neighbours.after;
    for (size_t i = n; i-- > 0;) follow(i, after, joins_host);
  }
  for (size_t i = 0; i < n; ++i) {
    if (!is_placed[i] && !block.operations[i].is_view) scheduled[i].lane = lane_of_operands(block.operations[i], placement);
  }
}

// What operations read from the other device, which is copied once.
class Reads {
 public:
  Reads(const Block& block, const Neighbours& neighbours, Where cache)
      : block_(block), copied_inputs_(neighbours.copied_inputs), at_(block.values.size(), device_bit(device_of(neighbours.before))) {
    const auto start = [&](Beside beside, uint32_t devices) {
      const int32_t in = block.handed[static_cast<size_t>(beside)].in;
      if (is_value(in)) at(in) = devices;
    };
    start(Beside::state, device_bit(device_of(cache)));
    start(Beside::scan, device_bit(device_of(cache)));
    shared_home_ = device_bit(neighbours.shared_home.value_or(device_of(neighbours.before)));
    start(Beside::shared, shared_home_ | neighbours.shared_copies);
  }

  // Also notes where the operation's result is.
  bool from_elsewhere(const Operation& operation, const ScheduledOperation& scheduled) {
    bool found = scheduled.copies_cache;
    for (const int32_t operand : operation.inputs) {
      if (operand == kWeight && scheduled.copies_weight) {
        found =
            (reads_rope_factors(operation) ? copy(GraphInput::rope_factors, scheduled.device) : copy(operation.weight, scheduled.device)) ||
            found;
      } else if (is_value(operand)) {
        found = value(operand, scheduled.device) || found;
      }
    }
    if (operation.output != kNoValue) at(operation.output) = device_bit(scheduled.device);
    return found;
  }
  // A view of what was copied whole is copied once more.
  void alias(const Operation& view) {
    const bool is_shared = view.inputs[0] == block_.handed[static_cast<size_t>(Beside::shared)].in;
    at(view.output) = is_shared ? shared_home_ : at(view.inputs[0]);
  }

 private:
  uint32_t& at(int32_t value) { return at_[static_cast<size_t>(value)]; }

  bool copy(const Tensor* weight, Device device) {
    const std::pair copied{weight, device};
    if (std::find(copied_weights_.begin(), copied_weights_.end(), copied) != copied_weights_.end()) return false;
    copied_weights_.push_back(copied);
    return true;
  }
  bool copy(GraphInput input, Device device) {
    InputBits& copied = copied_inputs_[index(device)];
    const bool is_new = (copied & input_bit(input)) == 0;
    copied |= input_bit(input);
    return is_new;
  }
  bool value(int32_t operand, Device device) {
    const Value& read = block_.values[static_cast<size_t>(operand)];
    if (read.is_input) return device != Device::host && copy(read.input, device);
    const bool is_new = (at(operand) & device_bit(device)) == 0;
    at(operand) |= device_bit(device);
    return is_new;
  }

  const Block& block_;
  InputsByDevice copied_inputs_;
  std::vector<std::pair<const Tensor*, Device>> copied_weights_;
  std::vector<uint32_t> at_;  // by value: bits of the devices that have it
  uint32_t shared_home_ = 0;
};

}  // namespace

Where BlockPlacement::weight_of(const Operation& operation) const {
  if (operation.weight->host_only) return Where::cpu;
  if (operation.is_first_layers && first_attention) return *first_attention;
  if (!exceptions.empty()) {
    const std::string_view name = local_name(operation.weight->name);
    for (const TensorException& exception : exceptions) {
      if (exception.name == name) return exception.where;
    }
  }
  if (operation.weight_decides || operation.group >= Group::embedding) return of(operation);
  if (reads_rope_factors(operation)) return layer.device;                           // they exist once per device with layers
  return of(operation.group == Group::cache ? Group::attention : operation.group);  // sinks are read where the cache is
}

BlockEnds block_ends(const Block& block, const BlockPlacement& placement) {
  BlockEnds ends;
  bool found = false;
  for (const ScheduledOperation& operation : decide(block, placement)) {
    if (!operation.decided) continue;
    if (!found) ends.first = operation.lane;
    ends.last = operation.lane;
    found = true;
  }
  return ends;
}

std::vector<ScheduledOperation> schedule(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours) {
  std::vector<ScheduledOperation> result = decide(block, placement);
  follow_neighbours(block, placement, neighbours, result);
  // Views do no work: they stay in the split before them, and those at the front in that of the first operation.
  const auto is_work = [](const Operation& operation) { return !operation.is_view; };
  const auto first =
      static_cast<size_t>(std::find_if(block.operations.begin(), block.operations.end(), is_work) - block.operations.begin());
  for (size_t i = 0; i < first && first < result.size(); ++i) result[i].lane = result[first].lane;
  Where before = neighbours.last_lane.value_or(neighbours.before);
  Reads reads(block, neighbours, placement.of(Group::cache));
  bool split_reads = neighbours.split_reads;
  for (size_t i = 0; i < result.size(); ++i) {
    ScheduledOperation& current = result[i];
    const Operation& operation = block.operations[i];
    if (operation.is_view && i > first) current.lane = before;
    current.device = device_of(current.lane);
    current.split_reads = split_reads;
    if (operation.is_view) {
      reads.alias(operation);
      continue;
    }
    if (operation.reads_cache()) current.copies_cache = device_of(placement.cache_of(operation)) != current.device;
    if (operation.weight != nullptr && !operation.weight_decides) {
      current.copies_weight = device_of(placement.weight_of(operation)) != current.device;
    }
    const bool starts = current.lane != before || (current.copies_weight && split_reads && operation.weight_part_bytes == 0);
    if (starts) {
      result[i == first ? 0 : i].starts_split = true;
      split_reads = false;
    }
    split_reads = reads.from_elsewhere(operation, current) || split_reads;
    current.split_reads = split_reads;
    before = current.lane;
  }
  return result;
}

}  // namespace pshard
