#include "memory/replay.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "memory/live_bytes.hpp"
#include "memory/memory.hpp"

namespace pshard {

namespace {

constexpr int64_t kCastRatio = 2;  // f32 to f16
constexpr int64_t kHostAlignment = 32;
constexpr int64_t kGpuAlignment = 128;
constexpr int64_t kKept = -2;  // instead of an offset: a pipeline copy, which lies outside the arena

template <typename Visit>
void for_each_input(const Operation& operation, Visit visit) {
  for (const int32_t operand : operation.inputs) {
    if (operand == kNoValue) return;
    if (is_value(operand)) visit(operand);
  }
}

const Value& value_of(const Block& block, int32_t value) { return block.values[static_cast<size_t>(value)]; }

// What a lane brings for the operations [first, end).
StreamedCopies streamed_copies(const ScheduledBlock& scheduled, size_t first, size_t end, const std::vector<int64_t>& cache_bytes) {
  StreamedCopies copies;
  for (size_t i = first; i < end; ++i) {
    const Operation& operation = scheduled.block->operations[i];
    if (!is_streamed(scheduled.operations[i].lane)) continue;
    if (operation.cache_bytes > 0) copies.cache_bytes = cache_bytes;
    if (operation.weight != nullptr && !reads_rope_factors(operation)) copies.weights.push_back({i, gpu_tensor_bytes(*operation.weight)});
  }
  return copies;
}

// Streamed weights lie there until they are read, caches to the end of the split.
int64_t live_bytes(const StreamedCopies& streamed, const std::vector<int64_t>& live, size_t first, size_t end) {
  int64_t to_read = streamed.n_bytes();
  int64_t most = to_read;
  auto next = streamed.weights.begin();
  for (size_t i = first; i < end; ++i) {
    most = std::max(most, to_read + live[i]);
    for (; next != streamed.weights.end() && next->reader == i; ++next) to_read -= next->n_bytes;
  }
  return most;
}

size_t end_of_split(const ScheduledBlock& scheduled, size_t first) {
  size_t end = std::min(first + 1, scheduled.operations.size());
  while (end < scheduled.operations.size() && !scheduled.operations[end].starts_split) ++end;
  return end;
}

// Rope factors on another device than the rope.
bool copies_rope_factors(const ScheduledBlock& scheduled, size_t i) {
  return scheduled.operations[i].copies_weight && reads_rope_factors(scheduled.block->operations[i]);
}

Where fused_in(const ScheduledBlock& scheduled, const FusedRun& run) {
  return place_on(scheduled.operations[static_cast<size_t>(run.first)].device);
}

// Fused kernels exist only on a GPU, where nothing comes between their operations.
bool is_fused(const ScheduledBlock& scheduled, const FusedRun& run) {
  const Device device = device_of(fused_in(scheduled, run));
  if (!is_gpu(device)) return false;
  for (int32_t i = run.first; i <= run.last; ++i) {
    const ScheduledOperation& operation = scheduled.operations[static_cast<size_t>(i)];
    if (operation.device != device || (i > run.first && operation.starts_split)) return false;
  }
  return true;
}

// Where an operation has its copy of a graph input.
Where place_of(GraphInput input, Where lane, InputBits cast_inputs) {
  return is_streamed(lane) && (cast_inputs & input_bit(input)) != 0 ? Where::pinned : lane;
}

// A value in one place: its home, or the copy that a split elsewhere made.
struct Instance {
  int32_t readers = 0;
  int64_t offset = kNowhere;
  int64_t n_bytes = 0;
};

class Replay {
 public:
  Replay(const ScheduledBlock& scheduled, const ReplayOutlook& outlook, const InputBytes& input_bytes, ReplayState& state)
      : scheduled_(scheduled),
        block_(*scheduled.block),
        outlook_(outlook),
        input_bytes_(input_bytes),
        state_(state),
        n_places_(state.inputs.size()),
        homes_(scheduled.homes),
        instances_(n_places_ * block_.values.size()) {
    take_over(block_.residual_in, {.offset = state.residual_offset, .n_bytes = state.residual_bytes}, state.residual_home);
    take_over(block_.state_in, {.offset = state.state_offset, .n_bytes = state.state_bytes}, state.state_home);
    if (block_.state_out != kNoValue) state_home_ = home(block_.state_out);
    for (size_t d = 0; d < state.arenas.size(); ++d) peaks_[d].bytes = state.arenas[d].extent();
    count_readers();
  }

  ReplayPeaks run() {
    const size_t n = block_.operations.size();
    size_t split = 0;
    for (size_t first = 0; first < n; ++split) {
      const size_t end = end_of_split(scheduled_, first);
      run_split(first, end, split);
      first = end;
    }
    const int32_t residual = block_.residual_out;
    if (residual != kNoValue) {
      const Instance& instance = at(holder(residual, home(residual)), home(residual));
      state_.residual_home = home(residual);
      state_.residual_offset = instance.offset;
      state_.residual_bytes = instance.n_bytes;
    }
    const int32_t next = block_.state_out;
    const Instance loaded = next != kNoValue ? at(next, state_home_) : Instance{};
    state_.state_home = next != kNoValue ? state_home_ : Where::cpu;
    state_.state_offset = loaded.offset;
    state_.state_bytes = loaded.n_bytes;
    return peaks_;
  }

 private:
  [[nodiscard]] bool is_input(int32_t value) const { return value_of(block_, value).is_input; }
  [[nodiscard]] Where home(int32_t value) const { return homes_[static_cast<size_t>(value)]; }
  Instance& at(int32_t value, Where place) { return instances_[n_places_ * static_cast<size_t>(value) + static_cast<size_t>(place)]; }
  int64_t& input_offset(GraphInput input, Where place) { return state_.inputs_in(place)[static_cast<size_t>(input)]; }

  // Where an operation reads a value: intermediate results have one copy on each device, graph inputs one in each lane.
  [[nodiscard]] Where read_in(int32_t value, const ScheduledOperation& reader) const {
    return is_input(value) ? place_of(value_of(block_, value).input, reader.lane, scheduled_.cast_inputs) : place_on(reader.device);
  }

  // What holds the memory of a value in a place: a view has none of its own where its base is; copied, it is a value like others.
  [[nodiscard]] int32_t holder(int32_t value, Where place) const {
    return place == home(value) ? scheduled_.bases[static_cast<size_t>(value)] : value;
  }

  // A value that the block before left; views of it are where it is.
  void take_over(int32_t value, const Instance& instance, Where place) {
    if (value == kNoValue) return;
    for (size_t v = 0; v < homes_.size(); ++v) {
      if (scheduled_.bases[v] == value) homes_[v] = place;
    }
    at(value, place) = instance;
  }

  void count_readers() {
    for (size_t i = 0; i < block_.operations.size(); ++i) {
      if (block_.operations[i].is_view) continue;
      const ScheduledOperation& scheduled = scheduled_.operations[i];
      if (copies_rope_factors(scheduled_, i)) ++rope_factor_readers_[index(scheduled.device)];
      for_each_input(block_.operations[i], [&](int32_t value) { count_read(value, read_in(value, scheduled)); });
    }
    for (const FusedRun& run : scheduled_.fused) count_read(run.value, fused_in(scheduled_, run));
    for (const int32_t value : {block_.residual_out, block_.state_out}) {
      if (value != kNoValue) count_read(value, home(value));
    }
    for (size_t v = 0; v < block_.values.size(); ++v) {
      const auto value = static_cast<int32_t>(v);
      if (block_.values[v].is_kept) count_read(value, home(value));
    }
  }

  void count_read(int32_t value, Where place) {
    if (at(holder(value, place), place).readers++ > 0 || place == home(value)) return;
    // The first read in another place is of a copy, and making that is one more read of the original.
    const bool copied_before = is_input(value) && input_offset(value_of(block_, value).input, place) != kNowhere;
    if (!copied_before) ++at(holder(value, home(value)), home(value)).readers;
  }

  int64_t allocate(Where place, int64_t n_bytes) {
    Arena& arena = state_.arena(place);
    const int64_t offset = arena.allocate(n_bytes);
    int64_t& peak = peaks_[index(device_of(place))].bytes;
    peak = std::max(peak, offset + arena.padded(n_bytes));
    return offset;
  }

  // For what comes from another device.
  int64_t allocate_copy(Where place, int64_t n_bytes) {
    if (!outlook_.pipeline) return allocate(place, n_bytes);
    peaks_[index(device_of(place))].kept += kPipelineCopies * state_.arena(place).padded(n_bytes);
    return kKept;
  }

  void free(Where place, int64_t& offset, int64_t n_bytes) {
    if (offset >= 0) {
      state_.arena(place).free(offset, n_bytes);
      offset = kNowhere;
    }
  }

  void add(int32_t value, Where place) {
    const Value& v = value_of(block_, value);
    Instance& instance = at(value, place);
    const bool is_copy = home(value) != place;
    instance.n_bytes = v.n_bytes + (place != Where::cpu && !is_copy ? v.gpu_scratch_bytes : 0);
    instance.offset = is_copy ? allocate_copy(place, instance.n_bytes) : allocate(place, instance.n_bytes);
  }

  void release(int32_t value, Where place) {
    Instance& instance = at(value, place);
    if (--instance.readers > 0) return;
    if (is_input(value)) {
      release_input(value_of(block_, value).input, place);
    } else {
      free(place, instance.offset, instance.n_bytes);
    }
  }

  [[nodiscard]] bool is_copied_ahead(GraphInput input) {
    const Where lane = scheduled_.last_lane;
    return (outlook_.ahead.bits() & input_bit(input)) != 0 && lane != Where::cpu &&
           input_offset(input, place_of(input, lane, scheduled_.cast_inputs)) == kNowhere;
  }

  void release_input(GraphInput input, Where place) {
    if (place == Where::cpu && is_copied_ahead(input)) return;
    if (outlook_.pipeline || (outlook_.last_reads[place] & input_bit(input)) == 0) return;
    free(place, input_offset(input, place), input_bytes_[static_cast<size_t>(input)]);
  }

  void copy_input(GraphInput input, Where place) {
    const int64_t n_bytes = input_bytes_[static_cast<size_t>(input)];
    const InputBits cast = scheduled_.cast_inputs & input_bit(input);
    state_.uncast |= cast;
    input_offset(input, place) = cast != 0 ? allocate(place, kCastRatio * n_bytes) : allocate_copy(place, n_bytes);
  }

  // The first reader of an f32 mask casts it, once for all layers.
  void cast_inputs_of(const Operation& operation) {
    for_each_input(operation, [&](int32_t index) {
      const Value& value = value_of(block_, index);
      if (!value.is_input || (state_.uncast & input_bit(value.input)) == 0) return;
      int64_t& offset = input_offset(value.input, Where::pinned);
      const int64_t cast = allocate(Where::pinned, value.n_bytes);
      free(Where::pinned, offset, kCastRatio * value.n_bytes);
      offset = cast;
      state_.uncast &= ~input_bit(value.input);
    });
  }

  // What a split needs from elsewhere is there from its start, in the order in which it is read.
  void open_split(size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) {
      const Operation& operation = block_.operations[i];
      const ScheduledOperation& scheduled = scheduled_.operations[i];
      if (operation.is_view) continue;
      for (const int32_t operand : operation.inputs) {
        if (operand == kNoValue) break;
        if (is_value(operand)) {
          bring(operand, read_in(operand, scheduled));
        } else if (operand != kWeight) {
          copy_cache(i, operand);
        } else if (scheduled.copies_weight) {
          copy_weight(i);
        }
      }
    }
    if (end == block_.operations.size() && scheduled_.last_lane != Where::cpu) copy_ahead();
  }

  void bring(int32_t value, Where place) {
    if (place == home(value)) return;
    if (is_input(value)) {
      const GraphInput input = value_of(block_, value).input;
      if (input_offset(input, place) != kNowhere) return;
      copy_input(input, place);
      release(value, Where::cpu);
    } else if (at(value, place).offset == kNowhere) {
      release(holder(value, home(value)), home(value));
      add(value, place);
    }
  }

  // Inputs that only later blocks name have no value here.
  void copy_ahead() {
    const Where taker = place_on(device_of(scheduled_.last_lane));
    if (outlook_.takes_state && state_home_ != taker) {
      Instance& original = at(block_.state_out, state_home_);
      const int64_t n_bytes = original.n_bytes;
      free(state_home_, original.offset, n_bytes);
      at(block_.state_out, taker) = {.readers = 1, .offset = allocate_copy(taker, n_bytes), .n_bytes = n_bytes};
      state_home_ = taker;
    }
    for (const GraphInput input : outlook_.ahead) {
      const Where place = place_of(input, scheduled_.last_lane, scheduled_.cast_inputs);
      if (input_offset(input, place) != kNowhere) continue;
      copy_input(input, place);
      release_input(input, Where::cpu);
    }
  }

  void copy_rope_factors(const Tensor& factors, Where place) {
    int64_t& offset = input_offset(GraphInput::rope_factors, place);
    if (offset == kNowhere) offset = allocate_copy(place, factors.n_bytes);
  }

  void release_rope_factors(const Tensor& factors, Device device) {
    const Where place = place_on(device);
    const bool is_last = (outlook_.last_reads[place] & input_bit(GraphInput::rope_factors)) != 0;
    if (--rope_factor_readers_[index(device)] == 0 && is_last) free(place, input_offset(GraphInput::rope_factors, place), factors.n_bytes);
  }

  void copy_weight(size_t operation) {
    const Operation& reader = block_.operations[operation];
    const Where place = place_on(scheduled_.operations[operation].device);
    if (copies_rope_factors(scheduled_, operation)) return copy_rope_factors(*reader.weight, place);
    // A weight that several operations read is copied once and stays to the last of them.
    size_t last = operation;
    for (size_t i = 0; i < block_.operations.size(); ++i) {
      const bool reads_it = block_.operations[i].weight == reader.weight && scheduled_.operations[i].copies_weight;
      if (!reads_it || place_on(scheduled_.operations[i].device) != place) continue;
      if (i < operation) return;
      last = i;
    }
    const int64_t whole = place != Where::cpu ? gpu_tensor_bytes(*reader.weight) : reader.weight->n_bytes;
    copy(last, kWeight, reader.weight_part_bytes > 0 ? reader.weight_part_bytes : whole);
  }

  void copy_cache(size_t i, int32_t operand) {
    const ScheduledOperation& scheduled = scheduled_.operations[i];
    if (!scheduled.copies_cache || is_streamed(scheduled.lane)) return;
    const CacheOperand& cache = block_.operations[i].cache[operand == kCache ? 0 : 1];
    copy(i, operand, cache.n_bytes + (is_gpu(scheduled.device) ? cache.gpu_padding_bytes : 0));
  }

  void copy(size_t operation, int32_t operand, int64_t n_bytes) {
    const Where place = place_on(scheduled_.operations[operation].device);
    const int64_t offset = allocate_copy(place, n_bytes);
    copies_.push_back({.operation = operation, .operand = operand, .place = place, .offset = offset, .n_bytes = n_bytes});
  }

  // The next split's weights and KV arrive while this one runs.
  void run_split(size_t first, size_t end, size_t split) {
    const bool opens = first > 0 || !outlook_.continues;
    if (opens) {
      for (Arrivals::Slot& slot : state_.here.caches) free(Where::pinned, slot.offset, slot.n_bytes);
      std::swap(state_.here, state_.next);
      state_.next.clear();
    }
    const std::vector<StreamedCopies::Weight>& weights = scheduled_.streamed[split].weights;
    std::vector<int64_t>& arrived = state_.here.weights;
    open_split(first, end);
    if (opens) receive_for_split(split + 1);
    size_t read = 0;
    for (size_t i = first; i < end; ++i) {
      run_operation(i);
      for (; read < weights.size() && weights[read].reader == i; ++read) free(Where::pinned, arrived[read], weights[read].n_bytes);
    }
    arrived.erase(arrived.begin(), arrived.begin() + static_cast<std::ptrdiff_t>(read));
  }

  void receive_for_split(size_t split) {
    const size_t n = scheduled_.streamed.size();
    const StreamedCopies* copies = split == n ? outlook_.behind : split + 1 == n ? outlook_.last : &scheduled_.streamed[split];
    if (copies == nullptr) return;
    for (const StreamedCopies::Weight& weight : copies->weights) state_.next.weights.push_back(allocate(Where::pinned, weight.n_bytes));
    for (const int64_t n_bytes : copies->cache_bytes) state_.next.caches.push_back({allocate(Where::pinned, n_bytes), n_bytes});
  }

  void run_operation(size_t i) {
    const Operation& operation = block_.operations[i];
    if (operation.is_view) return end_fused(i);
    const ScheduledOperation& scheduled = scheduled_.operations[i];
    if (is_gpu(scheduled.device) && state_.uncast != 0) cast_inputs_of(operation);
    const Where home = place_on(scheduled.device);
    if (operation.output != kNoValue && !is_written_over(operation) && !reuse(operation, home)) add(operation.output, home);
    for (const int32_t operand : operation.inputs) {
      if (operand == kNoValue) break;
      if (is_value(operand)) {
        const Where place = read_in(operand, scheduled);
        release(holder(operand, place), place);
      } else if (operand == kWeight && copies_rope_factors(scheduled_, i)) {
        release_rope_factors(*operation.weight, scheduled.device);
      } else {
        drop_copy(i, operand);
      }
    }
    end_fused(i);
  }

  void drop_copy(size_t operation, int32_t operand) {
    const auto is_it = [&](const Copy& copy) { return copy.operation == operation && copy.operand == operand; };
    const auto copy = std::find_if(copies_.begin(), copies_.end(), is_it);
    if (copy == copies_.end()) return;
    free(copy->place, copy->offset, copy->n_bytes);
    copies_.erase(copy);
  }

  void end_fused(size_t i) {
    for (; next_fused_ < scheduled_.fused.size() && static_cast<size_t>(scheduled_.fused[next_fused_].until) == i; ++next_fused_) {
      const FusedRun& run = scheduled_.fused[next_fused_];
      const Where place = fused_in(scheduled_, run);
      release(holder(run.value, place), place);
    }
  }

  // The output is the memory of one of its operands.
  [[nodiscard]] bool is_written_over(const Operation& operation) const {
    return scheduled_.bases[static_cast<size_t>(operation.output)] != operation.output;
  }

  bool reuse(const Operation& operation, Where place) {
    const int64_t n_bytes = value_of(block_, operation.output).n_bytes;
    for (size_t i = 0; i < operation.inputs.size(); ++i) {
      const int32_t value = operation.inputs[i];
      if ((operation.overwrites >> i & 1) == 0) continue;
      if (holder(value, place) != value) continue;  // never through a view
      Instance& parent = at(value, place);
      if (parent.offset < 0 || parent.readers != 1) continue;
      Instance& output = at(operation.output, place);
      output.offset = parent.offset;
      output.n_bytes = n_bytes;
      state_.arena(place).shrink(parent.offset, parent.n_bytes, n_bytes);
      parent.offset = kNowhere;
      return true;
    }
    return false;
  }

  struct Copy {
    size_t operation = 0;
    int32_t operand = kNoValue;
    Where place = Where::pinned;
    int64_t offset = 0;
    int64_t n_bytes = 0;
  };

  const ScheduledBlock& scheduled_;
  const Block& block_;
  const ReplayOutlook& outlook_;
  const InputBytes& input_bytes_;
  ReplayState& state_;
  size_t n_places_;
  std::vector<Where> homes_;
  std::vector<Instance> instances_;
  std::vector<Copy> copies_;  // of weights and caches, for one operation each
  size_t next_fused_ = 0;
  PerDevice<int32_t> rope_factor_readers_{};
  Where state_home_ = Where::cpu;  // of block_.state_out
  ReplayPeaks peaks_;
};

}  // namespace

ReplayState::ReplayState(int n_gpu) {
  arenas.emplace_back(kHostAlignment);
  for (int gpu = 0; gpu < n_gpu; ++gpu) arenas.emplace_back(kGpuAlignment);
  inputs.resize(static_cast<size_t>(std::max(Where::cpu, pinned_on(n_gpu - 1))) + 1);
  for (InputOffsets& offsets : inputs) offsets.fill(kNowhere);
}

int64_t StreamedCopies::n_bytes() const {
  int64_t total = std::accumulate(cache_bytes.begin(), cache_bytes.end(), int64_t{0});
  for (const Weight& weight : weights) total += weight.n_bytes;
  return total;
}

ScheduledBlock schedule_block(const Block& block, const BlockPlacement& placement, const Neighbours& neighbours,
                              const std::vector<int64_t>& cache_bytes, InputBits cast_inputs) {
  ScheduledBlock result;
  result.block = &block;
  result.operations = schedule(block, placement, neighbours);
  result.homes.resize(block.values.size(), Where::cpu);
  for (size_t v = 0; v < block.values.size(); ++v) result.bases.push_back(static_cast<int32_t>(v));
  result.cast_inputs = cast_inputs;
  const size_t n = block.operations.size();
  bool first_split = true;
  for (size_t i = 0; i < n; ++i) {
    const Operation& operation = block.operations[i];
    const ScheduledOperation& scheduled = result.operations[i];
    if (operation.is_view) {
      const auto view = static_cast<size_t>(operation.output);
      const auto base = static_cast<size_t>(operation.inputs[0]);
      result.homes[view] = result.homes[base];
      result.bases[view] = result.bases[base];
      continue;
    }
    if (operation.output != kNoValue) {
      const auto output = static_cast<size_t>(operation.output);
      result.homes[output] = place_on(scheduled.device);
      if (operation.writes_into >= 0) {
        const auto target = static_cast<size_t>(operation.inputs[static_cast<size_t>(operation.writes_into)]);
        if (result.homes[target] == result.homes[output]) result.bases[output] = result.bases[target];
      }
    }
    if (i > 0 && scheduled.starts_split) first_split = false;
    if (copies_rope_factors(result, i)) {
      result.inputs[place_on(scheduled.device)] |= input_bit(GraphInput::rope_factors);
      if (is_gpu(scheduled.device)) result.copied_inputs |= input_bit(GraphInput::rope_factors);
    }
    for_each_input(operation, [&](int32_t value) {
      const Value& v = value_of(block, value);
      if (first_split && block.state_in != kNoValue && result.bases[static_cast<size_t>(value)] == block.state_in) {
        result.first_split_reads_state = true;
      }
      if (!v.is_input) return;
      const Where place = place_of(v.input, scheduled.lane, cast_inputs);
      result.inputs[place] |= input_bit(v.input);
      if (place != Where::cpu) result.copied_inputs |= input_bit(v.input);
      if (first_split) result.first_split_inputs.add(v.input);
    });
  }
  if (n > 0) {
    result.first_lane = result.operations.front().lane;
    result.last_lane = result.operations.back().lane;
    const auto is_work = [](const Operation& operation) { return !operation.is_view; };
    const auto work = std::find_if(block.operations.begin(), block.operations.end(), is_work) - block.operations.begin();
    result.may_continue = static_cast<size_t>(work) == n || !result.operations[static_cast<size_t>(work)].copies_weight;
  }
  for (const FusedRun& run : block.fused) {
    if (is_fused(result, run)) result.fused.push_back(run);
  }
  std::stable_sort(result.fused.begin(), result.fused.end(), [](const FusedRun& a, const FusedRun& b) { return a.until < b.until; });
  const std::vector<int64_t> live = live_gpu_bytes(block, result.operations);
  size_t first = 0;
  do {
    const size_t end = end_of_split(result, first);
    result.streamed.push_back(streamed_copies(result, first, end, cache_bytes));
    result.stream_bytes.push_back(result.streamed.back().n_bytes());
    result.live_bytes.push_back(live_bytes(result.streamed.back(), live, first, end));
    first = end;
  } while (first < n);
  return result;
}

ReplayPeaks replay(const ScheduledBlock& scheduled, const ReplayOutlook& outlook, const InputBytes& input_bytes, ReplayState& state) {
  return Replay(scheduled, outlook, input_bytes, state).run();
}

}  // namespace pshard
