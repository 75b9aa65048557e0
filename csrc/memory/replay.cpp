#include "memory/replay.hpp"

#include <algorithm>
#include <utility>

#include "memory/memory.hpp"

namespace pshard {

namespace {

constexpr int64_t kCastRatio = 2;  // f32 to f16

Device other(Device device) { return device == Device::gpu ? Device::host : Device::gpu; }

template <typename Visit>
void for_each_input(const Operation& operation, Visit visit) {
  for (const int32_t value : operation.inputs) {
    if (value != kNoValue) visit(value);
  }
}

const Value& value_of(const Block& block, int32_t value) { return block.values[static_cast<size_t>(value)]; }

// What a lane brings for the operations [first, end), in the order of their first readers: operands as ggml has them.
std::vector<StreamedCopy> streamed_copies(const ScheduledBlock& scheduled, size_t first, size_t end) {
  std::vector<StreamedCopy> copies;
  int64_t value_bytes = 0;
  size_t last_reader = end;
  for (size_t i = first; i < end; ++i) {
    const Operation& operation = scheduled.block->operations[i];
    if (!is_streamed(scheduled.operations[i].lane) || operation.cache_bytes == 0) continue;
    value_bytes = std::max(value_bytes, operation.cache_value_bytes);
    last_reader = i;
  }
  int caches = 0;
  for (size_t i = first; i < end; ++i) {
    const Operation& operation = scheduled.block->operations[i];
    if (!is_streamed(scheduled.operations[i].lane)) continue;
    if (operation.cache_bytes > 0 && caches < 2) {
      const int64_t n_bytes = caches++ == 0 ? scheduled.slot_bytes - value_bytes : value_bytes;
      if (n_bytes > 0) copies.push_back({last_reader, n_bytes});
    }
    if (operation.weight != nullptr) copies.push_back({i, gpu_tensor_bytes(*operation.weight)});
  }
  return copies;
}

size_t end_of_split(const ScheduledBlock& scheduled, size_t first) {
  size_t end = std::min(first + 1, scheduled.operations.size());
  while (end < scheduled.operations.size() && !scheduled.operations[end].starts_split) ++end;
  return end;
}

// Rope factors in host memory under a rope on the GPU.
bool copies_rope_factors(const ScheduledBlock& scheduled, size_t i) {
  const Operation& operation = scheduled.block->operations[i];
  return scheduled.operations[i].copies_weight && !operation.weight_decides && operation.kind == OpKind::elementwise;
}

// A value on one device: its home, or the copy that a split on the other device made.
struct Instance {
  int32_t readers = 0;
  int64_t offset = kNowhere;
  int64_t n_bytes = 0;
};

class Replay {
 public:
  Replay(const ScheduledBlock& scheduled, const ReplayOutlook& outlook, const InputBytes& input_bytes, InputBits cast_inputs,
         ReplayState& state)
      : scheduled_(scheduled),
        block_(*scheduled.block),
        outlook_(outlook),
        input_bytes_(input_bytes),
        cast_inputs_(cast_inputs),
        state_(state),
        homes_(scheduled.homes),
        instances_(2 * block_.values.size()) {
    if (block_.residual_in != kNoValue) {
      homes_[static_cast<size_t>(block_.residual_in)] = state.residual_device;
      at(block_.residual_in, state.residual_device) = {.readers = 0, .offset = state.residual_offset, .n_bytes = state.residual_bytes};
    }
    count_readers();
  }

  ReplayPeaks run() {
    const size_t n = block_.operations.size();
    size_t index = 0;
    for (size_t first = 0; first < n; ++index) {
      const size_t end = end_of_split(scheduled_, first);
      run_split(first, end, index);
      first = end;
    }
    const int32_t residual = block_.residual_out;
    if (residual != kNoValue) {
      const Instance& instance = at(holder(residual, home(residual)), home(residual));
      state_.residual_device = home(residual);
      state_.residual_offset = instance.offset;
      state_.residual_bytes = instance.n_bytes;
    }
    return peaks_;
  }

 private:
  [[nodiscard]] bool is_input(int32_t value) const { return value_of(block_, value).is_input; }
  [[nodiscard]] Device home(int32_t value) const { return homes_[static_cast<size_t>(value)]; }
  Instance& at(int32_t value, Device device) { return instances_[2 * static_cast<size_t>(value) + static_cast<size_t>(device)]; }
  Arena& arena(Device device) { return device == Device::gpu ? state_.gpu : state_.host; }
  int64_t& input_offset(GraphInput input, Device device) {
    return (device == Device::gpu ? state_.gpu_inputs : state_.host_inputs)[static_cast<size_t>(input)];
  }

  // What holds the memory of a value on a device: a view has none of its own where its base is; copied, it is a value like others.
  [[nodiscard]] int32_t holder(int32_t value, Device device) const {
    return device == home(value) ? scheduled_.bases[static_cast<size_t>(value)] : value;
  }

  void count_readers() {
    for (size_t i = 0; i < block_.operations.size(); ++i) {
      if (block_.operations[i].is_view) continue;
      if (copies_rope_factors(scheduled_, i)) ++rope_factor_readers_;
      const Device device = scheduled_.operations[i].device;
      for_each_input(block_.operations[i], [&](int32_t value) { ++at(holder(value, device), device).readers; });
    }
    for (const FusedRun& run : block_.fused) {
      if (is_fused(run)) ++at(holder(run.value, Device::gpu), Device::gpu).readers;
    }
    if (block_.residual_out != kNoValue) {
      const Device device = home(block_.residual_out);
      ++at(holder(block_.residual_out, device), device).readers;
    }
    for (size_t v = 0; v < block_.values.size(); ++v) {  // making the copy is one more read of the original
      const auto value = static_cast<int32_t>(v);
      const Device original = is_input(value) ? Device::host : homes_[v];
      const bool copied_before = is_input(value) && input_offset(block_.values[v].input, Device::gpu) != kNowhere;
      if (at(value, other(original)).readers > 0 && !copied_before) ++at(holder(value, original), original).readers;
    }
  }

  // Fused kernels exist only where nothing comes between their operations.
  [[nodiscard]] bool is_fused(const FusedRun& run) const {
    if (home(run.value) != Device::gpu) return false;
    for (int32_t i = run.first; i <= run.last; ++i) {
      const ScheduledOperation& operation = scheduled_.operations[static_cast<size_t>(i)];
      if (operation.device != Device::gpu || (i > run.first && operation.starts_split)) return false;
    }
    return true;
  }

  int64_t allocate(Device device, int64_t n_bytes) {
    const int64_t offset = arena(device).allocate(n_bytes);
    int64_t& peak = device == Device::gpu ? split_peak_ : peaks_.host_bytes;
    peak = std::max(peak, arena(device).extent());
    return offset;
  }

  void add(int32_t value, Device device) {
    const Value& v = value_of(block_, value);
    Instance& instance = at(value, device);
    instance.n_bytes = v.n_bytes + (device == Device::gpu && home(value) == device ? v.gpu_scratch_bytes : 0);
    instance.offset = allocate(device, instance.n_bytes);
  }

  void release(int32_t value, Device device) {
    Instance& instance = at(value, device);
    if (--instance.readers > 0) return;
    if (is_input(value)) return release_input(value_of(block_, value), device);
    if (instance.offset == kNowhere) return;
    arena(device).free(instance.offset, instance.n_bytes);
    instance.offset = kNowhere;
  }

  void release_input(const Value& value, Device device) {
    const InputBits last = device == Device::gpu ? outlook_.last_gpu : outlook_.last_host;
    int64_t& offset = input_offset(value.input, device);
    if ((last & input_bit(value.input)) == 0 || offset == kNowhere) return;
    arena(device).free(offset, value.n_bytes);
    offset = kNowhere;
  }

  void copy_input(int32_t index) {
    const Value& value = value_of(block_, index);
    int64_t& offset = input_offset(value.input, Device::gpu);
    if (offset != kNowhere) return;
    release(index, Device::host);
    offset = allocate_input(value.input, value.n_bytes);
  }

  int64_t allocate_input(GraphInput input, int64_t n_bytes) {
    const InputBits bit = input_bit(input);
    if ((cast_inputs_ & bit) == 0) return allocate(Device::gpu, n_bytes);
    state_.uncast |= bit;
    return allocate(Device::gpu, kCastRatio * n_bytes);
  }

  // The first reader of an f32 mask casts it, once for all layers.
  void cast_inputs_of(const Operation& operation) {
    for_each_input(operation, [&](int32_t index) {
      const Value& value = value_of(block_, index);
      if (!value.is_input || (state_.uncast & input_bit(value.input)) == 0) return;
      int64_t& offset = input_offset(value.input, Device::gpu);
      const int64_t cast = allocate(Device::gpu, value.n_bytes);
      state_.gpu.free(offset, kCastRatio * value.n_bytes);
      offset = cast;
      state_.uncast &= ~input_bit(value.input);
    });
  }

  // What a split needs from the other device is there from its start, in the order in which it is read.
  void open_split(size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) {
      const Operation& operation = block_.operations[i];
      const ScheduledOperation& scheduled = scheduled_.operations[i];
      if (operation.is_view) continue;
      // Operands in ggml's order: weights and caches first, but behind the activation in element-wise work and fused attention.
      const bool product = operation.kind == OpKind::mul_mat || operation.kind == OpKind::mul_mat_id;
      const bool attention = operation.kind == OpKind::attention;
      if (scheduled.copies_weight && product) copy_weight(i);
      if (!attention) copy_cache(i);
      bool first_input = true;
      for_each_input(operation, [&](int32_t value) {
        if (is_input(value)) {
          if (scheduled.device == Device::gpu) copy_input(value);
        } else if (home(value) != scheduled.device && at(value, scheduled.device).offset == kNowhere) {
          release(holder(value, home(value)), home(value));
          add(value, scheduled.device);
        }
        if (first_input && attention) copy_cache(i);
        first_input = false;
      });
      if (scheduled.copies_weight && !product) copy_weight(i);
    }
    if (end == block_.operations.size() && scheduled_.operations[first].device == Device::gpu) copy_ahead();
  }

  // Inputs that only later blocks name have no value here.
  void copy_ahead() {
    for (size_t i = 0; i < input_bytes_.size(); ++i) {
      const InputBits bit = InputBits{1} << i;
      int64_t& offset = state_.gpu_inputs[i];
      if ((outlook_.ahead & bit) == 0 || offset != kNowhere) continue;
      int64_t& original = state_.host_inputs[i];
      if ((outlook_.last_host & bit) != 0 && original != kNowhere) {
        state_.host.free(original, input_bytes_[i]);
        original = kNowhere;
      }
      offset = allocate_input(static_cast<GraphInput>(i), input_bytes_[i]);
    }
  }

  void copy_rope_factors(const Tensor& factors) {
    int64_t& offset = input_offset(GraphInput::rope_factors, Device::gpu);
    if (offset == kNowhere) offset = allocate(Device::gpu, factors.n_bytes);
  }

  void release_rope_factors(const Tensor& factors) {
    int64_t& offset = input_offset(GraphInput::rope_factors, Device::gpu);
    if (--rope_factor_readers_ > 0 || (outlook_.last_gpu & input_bit(GraphInput::rope_factors)) == 0) return;
    state_.gpu.free(offset, factors.n_bytes);
    offset = kNowhere;
  }

  void copy_weight(size_t operation) {
    if (copies_rope_factors(scheduled_, operation)) return copy_rope_factors(*block_.operations[operation].weight);
    const Operation& reader = block_.operations[operation];
    copy(operation, Device::gpu, reader.weight_part_bytes > 0 ? reader.weight_part_bytes : gpu_tensor_bytes(*reader.weight));
  }

  void copy_cache(size_t i) {
    const Operation& operation = block_.operations[i];
    const ScheduledOperation& scheduled = scheduled_.operations[i];
    if (!scheduled.copies_cache || is_streamed(scheduled.lane)) return;
    copy(i, scheduled.device, operation.cache_bytes - operation.cache_value_bytes);
    if (operation.cache_value_bytes > 0) copy(i, scheduled.device, operation.cache_value_bytes);
  }

  void copy(size_t operation, Device device, int64_t n_bytes) {
    copies_.push_back({.operation = operation, .device = device, .offset = allocate(device, n_bytes), .n_bytes = n_bytes});
  }

  // The next split's weights and KV arrive while this one runs.
  void run_split(size_t first, size_t end, size_t index) {
    split_peak_ = state_.gpu.extent();
    const bool opens = first > 0 || !outlook_.continues;
    if (opens) own_ = std::exchange(state_.streamed, {});
    open_split(first, end);
    if (opens) receive_for_split(index + 1);
    for (size_t i = first; i < end; ++i) {
      run_operation(i);
      if (opens) release_streamed(index, i);
    }
    peaks_.gpu_bytes = std::max(peaks_.gpu_bytes, split_peak_);
  }

  void receive_for_split(size_t split) {
    const StreamedCopies* copies = split < scheduled_.streamed.size() ? &scheduled_.streamed[split] : outlook_.streamed;
    if (copies == nullptr) return;
    for (const StreamedCopy& copy : *copies) state_.streamed.push_back(allocate(Device::gpu, copy.n_bytes));
  }

  void release_streamed(size_t split, size_t operation) {
    const std::vector<StreamedCopy>& copies = scheduled_.streamed[split];
    for (size_t c = 0; c < copies.size(); ++c) {
      if (copies[c].last_reader == operation) state_.gpu.free(own_[c], copies[c].n_bytes);
    }
  }

  void run_operation(size_t i) {
    const Operation& operation = block_.operations[i];
    if (operation.is_view) return end_fused(i);
    const Device device = scheduled_.operations[i].device;
    if (device == Device::gpu && state_.uncast != 0) cast_inputs_of(operation);
    if (operation.output != kNoValue && !reuse(operation, device)) add(operation.output, device);
    for_each_input(operation, [&](int32_t value) { release(holder(value, device), device); });
    if (copies_rope_factors(scheduled_, i)) release_rope_factors(*operation.weight);
    for (Copy& copy : copies_) {
      if (copy.operation == i) arena(copy.device).free(copy.offset, copy.n_bytes);
    }
    std::erase_if(copies_, [&](const Copy& copy) { return copy.operation == i; });
    end_fused(i);
  }

  void end_fused(size_t i) {
    for (const FusedRun& run : block_.fused) {
      if (static_cast<size_t>(run.last) == i && is_fused(run)) release(holder(run.value, Device::gpu), Device::gpu);
    }
  }

  bool reuse(const Operation& operation, Device device) {
    if (!operation.in_place) return false;
    const int64_t n_bytes = value_of(block_, operation.output).n_bytes;
    for (const int32_t value : operation.inputs) {
      if (value == kNoValue || is_input(value) || value_of(block_, value).n_bytes != n_bytes) continue;
      if (holder(value, device) != value) continue;  // never through a view
      Instance& parent = at(value, device);
      if (parent.offset == kNowhere || parent.readers != 1) continue;
      Instance& output = at(operation.output, device);
      output.offset = parent.offset;
      output.n_bytes = n_bytes;
      arena(device).shrink(parent.offset, parent.n_bytes, n_bytes);
      parent.offset = kNowhere;
      return true;
    }
    return false;
  }

  struct Copy {
    size_t operation = 0;
    Device device = Device::gpu;
    int64_t offset = 0;
    int64_t n_bytes = 0;
  };

  const ScheduledBlock& scheduled_;
  const Block& block_;
  const ReplayOutlook& outlook_;
  const InputBytes& input_bytes_;
  InputBits cast_inputs_;
  ReplayState& state_;
  std::vector<Device> homes_;
  std::vector<Instance> instances_;
  std::vector<int64_t> own_;  // offsets of what was streamed for the split that runs
  std::vector<Copy> copies_;  // of weights and caches, for one operation each
  int32_t rope_factor_readers_ = 0;
  int64_t split_peak_ = 0;
  ReplayPeaks peaks_;
};

}  // namespace

ScheduledBlock schedule_block(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours, int64_t slot_bytes) {
  ScheduledBlock result;
  result.block = &block;
  result.operations = schedule(block, placement, neighbours);
  result.homes.resize(block.values.size(), Device::host);
  for (size_t v = 0; v < block.values.size(); ++v) result.bases.push_back(static_cast<int32_t>(v));
  result.slot_bytes = slot_bytes;
  const size_t n = block.operations.size();
  bool first_split = true;
  result.one_split = true;
  for (size_t i = 0; i < n; ++i) {
    const Operation& operation = block.operations[i];
    const Device device = result.operations[i].device;
    if (operation.is_view) {
      const auto view = static_cast<size_t>(operation.output);
      const auto base = static_cast<size_t>(operation.inputs[0]);
      result.homes[view] = result.homes[base];
      result.bases[view] = result.bases[base];
      continue;
    }
    if (operation.output != kNoValue) result.homes[static_cast<size_t>(operation.output)] = device;
    if (i > 0 && result.operations[i].starts_split) first_split = result.one_split = false;
    if (copies_rope_factors(result, i)) result.gpu_inputs |= input_bit(GraphInput::rope_factors);
    for_each_input(operation, [&](int32_t value) {
      const Value& v = value_of(block, value);
      if (!v.is_input) return;
      (device == Device::gpu ? result.gpu_inputs : result.host_inputs) |= input_bit(v.input);
      if (first_split && device == Device::gpu) result.first_split_gpu_inputs |= input_bit(v.input);
    });
  }
  result.ends_streamed = n > 0 && is_streamed(result.operations.back().lane);
  result.continues_split = n > 0 && !result.operations.front().starts_split;
  for (size_t first = 0; first < n;) {
    const size_t end = end_of_split(result, first);
    result.streamed.push_back(streamed_copies(result, first, end));
    first = end;
  }
  return result;
}

ReplayPeaks replay(const ScheduledBlock& scheduled, const ReplayOutlook& outlook, const InputBytes& input_bytes, InputBits cast_inputs,
                   ReplayState& state) {
  return Replay(scheduled, outlook, input_bytes, cast_inputs, state).run();
}

}  // namespace pshard
