#include "memory/replay.hpp"

#include <algorithm>

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
    for (size_t b = 0; b < kHandedCount; ++b) {
      const ReplayState::HandedOn& handed = state.handed[b];
      const int32_t in = block_.handed[b].in;
      take_over(in, {.offset = handed.offset, .n_bytes = handed.n_bytes}, handed.home);
    }
    take_copies_of_shared();
    if (outlook.continues) first_end_ = end_of_split(scheduled, 0);
    take_rooms();
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
    for (size_t b = 0; b < kHandedCount; ++b) {
      const int32_t next = block_.handed[b].out;
      if (next == kNoValue) {
        state_.handed[b] = {};
        continue;
      }
      const Instance& handed = at(holder(next, home(next)), home(next));
      state_.handed[b] = {.home = home(next), .offset = handed.offset, .n_bytes = handed.n_bytes};
    }
    leave_copies_of_shared();
    return peaks_;
  }

 private:
  [[nodiscard]] const Value& value_of(int32_t value) const { return block_.values[static_cast<size_t>(value)]; }
  [[nodiscard]] bool is_input(int32_t value) const { return value_of(value).is_input; }
  [[nodiscard]] Where home(int32_t value) const { return homes_[static_cast<size_t>(value)]; }
  Instance& at(int32_t value, Where place) { return instances_[n_places_ * static_cast<size_t>(value) + static_cast<size_t>(place)]; }
  int64_t& input_offset(GraphInput input, Where place) { return state_.inputs_in(place)[static_cast<size_t>(input)]; }

  // Where an operation reads a value: intermediate results have one copy on each device, graph inputs one in each lane.
  [[nodiscard]] Where read_in(int32_t value, const ScheduledOperation& reader) const {
    return is_input(value) ? place_of(value_of(value).input, reader.lane, scheduled_.cast_inputs) : place_on(reader.device);
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

  void take_copies_of_shared() {
    if (shared().in == kNoValue) return;
    for (size_t p = 0; p < n_places_; ++p) {
      if (state_.shared_copies[p] == kNowhere) continue;
      const int64_t n_bytes = state_.handed[static_cast<size_t>(Beside::shared)].n_bytes;
      at(shared().in, static_cast<Where>(p)) = {.readers = 0, .offset = state_.shared_copies[p], .n_bytes = n_bytes};
    }
  }

  void leave_copies_of_shared() {
    std::fill(state_.shared_copies.begin(), state_.shared_copies.end(), kNowhere);
    const int32_t next = shared().out;
    if (next == kNoValue) return;
    for_each_copy(next, [&](Where place) {
      if (is_read_later(place)) state_.shared_copies[static_cast<size_t>(place)] = at(next, place).offset;
    });
  }

  void take_rooms() {
    auto offset = state_.rooms.begin();
    for (const int32_t leaf : block_.leaves) {
      if (!value_of(leaf).is_room) continue;
      if (offset == state_.rooms.end()) break;
      at(leaf, home(leaf)) = {.readers = 0, .offset = *offset++, .n_bytes = value_of(leaf).n_bytes};
    }
    state_.rooms.erase(state_.rooms.begin(), offset);
  }

  void count_readers() {
    for (size_t i = 0; i < block_.operations.size(); ++i) {
      if (block_.operations[i].is_view) continue;
      const ScheduledOperation& scheduled = scheduled_.operations[i];
      if (copies_rope_factors(scheduled_, i)) ++rope_factor_readers_[index(scheduled.device)];
      for_each_input(block_.operations[i], [&](int32_t value) {
        const Where place = read_in(value, scheduled);
        count_read(value, place, was_copied_ahead(value) && is_ahead(i));
      });
    }
    for (const FusedRun& run : scheduled_.fused) count_read(run.value, fused_in(scheduled_, run));
    const auto hand_on = [&](int32_t value) {
      if (value != kNoValue) count_read(value, home(value));
    };
    if (shared().passes()) {
      for_each_copy(shared().in, [&](Where place) {
        if (is_read_later(place)) ++at(shared().in, place).readers;
      });
    }
    hand_on(block_.residual_out);
    for (const Handed& handed : block_.handed) {
      if (&handed != &shared() || !outlook_.drops_shared) hand_on(handed.out);
    }
    for (size_t v = 0; v < block_.values.size(); ++v) {
      const auto value = static_cast<int32_t>(v);
      if (block_.values[v].is_kept) count_read(value, home(value));
    }
  }

  // The operation was already in the split in which the block before ended: what it reads from elsewhere has been copied there.
  [[nodiscard]] bool is_ahead(size_t operation) const { return operation < first_end_; }
  [[nodiscard]] bool was_copied_ahead(int32_t value) const {
    if (viewed_input(scheduled_, value) != GraphInput::none) return true;
    return value != shared().in && part_of_handed(scheduled_, value).has_value();
  }
  [[nodiscard]] const Handed& shared() const { return block_.handed[static_cast<size_t>(Beside::shared)]; }

  [[nodiscard]] bool is_read_later(Where place) const { return (outlook_.whole_reads & place_bit(place)) != 0; }

  // Where a value is, or will be, besides its home.
  template <typename Visit>
  void for_each_copy(int32_t value, Visit visit) {
    for (size_t p = 0; p < n_places_; ++p) {
      const auto place = static_cast<Where>(p);
      const Instance& instance = at(value, place);
      if (place != home(value) && (instance.readers > 0 || instance.offset != kNowhere)) visit(place);
    }
  }

  void count_read(int32_t value, Where place, bool was_copied = false) {
    if (at(holder(value, place), place).readers++ > 0 || place == home(value) || was_copied) return;
    if (at(holder(value, place), place).offset != kNowhere) return;  // in a block before
    // The first read in another place is of a copy, and making that is one more read of the original.
    const bool copied_before = is_input(value) && input_offset(value_of(value).input, place) != kNowhere;
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

  void add_copy(int32_t value, Where place) {
    const int64_t n_bytes = value_of(value).n_bytes;
    at(value, place) = {.readers = at(value, place).readers, .offset = allocate_copy(place, n_bytes), .n_bytes = n_bytes};
  }

  void add_result(int32_t value, const ScheduledOperation& scheduled) {
    const Value& v = value_of(value);
    Instance& instance = at(value, place_on(scheduled.device));
    instance.n_bytes = v.n_bytes;
    if (is_gpu(scheduled.device)) instance.n_bytes += v.gpu_scratch_bytes + (scheduled.copies_cache ? v.gpu_scratch_of_copies : 0);
    instance.offset = allocate(place_on(scheduled.device), instance.n_bytes);
  }

  void release(int32_t value, Where place) {
    Instance& instance = at(value, place);
    if (--instance.readers > 0) return;
    if (is_input(value)) {
      release_input(value_of(value).input, place);
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
      const Value& value = value_of(index);
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
          bring(operand, read_in(operand, scheduled), is_ahead(i));
        } else if (operand != kWeight) {
          copy_cache(i, operand);
        } else if (scheduled.copies_weight) {
          copy_weight(i);
        }
      }
    }
    if (end == block_.operations.size()) copy_ahead(first > 0 || !outlook_.continues);
  }

  // The next of what was copied when the split began.
  int64_t take_ahead() {
    const int64_t offset = state_.ahead.front();
    state_.ahead.erase(state_.ahead.begin());
    return offset;
  }

  void bring(int32_t value, Where place, bool is_ahead) {
    if (place == home(value)) return;
    if (is_input(value)) {
      const GraphInput input = value_of(value).input;
      if (input_offset(input, place) != kNowhere) return;
      copy_input(input, place);
      release(value, Where::cpu);
    } else if (at(value, place).offset != kNowhere) {
      return;
    } else if (is_ahead && was_copied_ahead(value)) {
      at(value, place).offset = take_ahead();
      at(value, place).n_bytes = value_of(value).n_bytes;
    } else {
      release(holder(value, home(value)), home(value));
      add_copy(value, place);
    }
  }

  // What only later blocks name has no value here.
  void copy_ahead(bool opens) {
    auto copy = outlook_.ahead.copies.begin();
    const auto copy_up_to = [&](int32_t n_inputs) {
      for (; opens && copy != outlook_.ahead.copies.end() && copy->n_inputs_before <= n_inputs; ++copy) {
        const Where place = place_on(device_of(scheduled_.last_lane));
        if (copy->is_whole) {
          if (at(shared().out, place).offset == kNowhere) add_copy(shared().out, place);
        } else {
          state_.ahead.push_back(allocate_copy(place, copy->n_bytes));
          if (copy->viewed != GraphInput::none) release_input(copy->viewed, Where::cpu);
        }
      }
    };
    int32_t n_inputs = 0;
    for (const GraphInput input : outlook_.ahead.inputs) {
      copy_up_to(n_inputs++);
      if (input == GraphInput::rope_factors) {
        copy_rope_factors(input_bytes_[static_cast<size_t>(input)], place_on(device_of(scheduled_.last_lane)));
        continue;
      }
      const Where place = place_of(input, scheduled_.last_lane, scheduled_.cast_inputs);
      if (place == Where::cpu || input_offset(input, place) != kNowhere) continue;
      copy_input(input, place);
      release_input(input, Where::cpu);
    }
    copy_up_to(n_inputs);
    for (size_t b = 0; opens && b < kHandedCount; ++b) {
      if (!outlook_.ends[b]) continue;
      const int32_t value = block_.handed[b].out;
      Instance& original = at(holder(value, home(value)), home(value));
      free(home(value), original.offset, original.n_bytes);
    }
  }

  void copy_rope_factors(int64_t n_bytes, Where place) {
    int64_t& offset = input_offset(GraphInput::rope_factors, place);
    if (offset == kNowhere) offset = allocate_copy(place, n_bytes);
  }

  void release_rope_factors(const Tensor& factors, Device device) {
    const Where place = place_on(device);
    const bool is_last = (outlook_.last_reads[place] & input_bit(GraphInput::rope_factors)) != 0;
    if (--rope_factor_readers_[index(device)] == 0 && is_last) free(place, input_offset(GraphInput::rope_factors, place), factors.n_bytes);
  }

  void copy_weight(size_t operation) {
    const Operation& reader = block_.operations[operation];
    const Where place = place_on(scheduled_.operations[operation].device);
    if (copies_rope_factors(scheduled_, operation)) return copy_rope_factors(reader.weight->n_bytes, place);
    if (!copies_weight_first(scheduled_, operation)) return;
    // What several operations read stays to the last of them.
    size_t last = operation;
    for (size_t i = operation + 1; i < block_.operations.size(); ++i) {
      const bool reads_it = block_.operations[i].weight == reader.weight && scheduled_.operations[i].copies_weight;
      if (reads_it && place_on(scheduled_.operations[i].device) == place) last = i;
    }
    copy(operation, last, kWeight, weight_copy_bytes(scheduled_, operation));
  }

  void copy_cache(size_t i, int32_t operand) {
    const ScheduledOperation& scheduled = scheduled_.operations[i];
    if (!scheduled.copies_cache || is_streamed(scheduled.lane)) return;
    copy(i, i, operand, cache_copy_bytes(scheduled_, i, operand));
  }

  // For the operation, and until behind the last that reads it.
  void copy(size_t operation, size_t last, int32_t operand, int64_t n_bytes) {
    const Where place = place_on(scheduled_.operations[operation].device);
    const int64_t offset = is_ahead(operation) ? take_ahead() : allocate_copy(place, n_bytes);
    copies_.push_back({.operation = last, .operand = operand, .place = place, .offset = offset, .n_bytes = n_bytes});
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
    if (operation.output != kNoValue && !is_written_over(operation) && !reuse(operation, scheduled))
      add_result(operation.output, scheduled);
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

  // A graph input, or the copy of one, that nobody reads afterwards.
  bool reuse_input(int32_t value, int32_t output, Where lane) {
    const GraphInput input = value_of(value).input;
    int64_t& offset = input_offset(input, lane);
    const bool is_last = !outlook_.pipeline && (outlook_.last_reads[lane] & input_bit(input)) != 0;
    if (!is_last || offset < 0 || at(value, lane).readers != 1 || (lane == Where::cpu && is_copied_ahead(input))) return false;
    at(output, place_on(device_of(lane))) = {
        .readers = at(output, place_on(device_of(lane))).readers, .offset = offset, .n_bytes = value_of(output).n_bytes};
    offset = kNowhere;
    return true;
  }

  bool reuse(const Operation& operation, const ScheduledOperation& scheduled) {
    const Where place = place_on(scheduled.device);
    const int64_t n_bytes = value_of(operation.output).n_bytes;
    for (size_t i = 0; i < operation.inputs.size(); ++i) {
      const int32_t value = operation.inputs[i];
      if ((operation.overwrites >> i & 1) == 0) continue;
      if (holder(value, place) != value) continue;  // never through a view
      if (is_input(value)) {
        if (reuse_input(value, operation.output, read_in(value, scheduled))) return true;
        continue;
      }
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
  size_t first_end_ = 0;  // of the split that goes on from the block before
  ReplayPeaks peaks_;
};

}  // namespace

ReplayState::ReplayState(int n_gpu) {
  arenas.emplace_back(kHostAlignment);
  for (int gpu = 0; gpu < n_gpu; ++gpu) arenas.emplace_back(kGpuAlignment);
  inputs.resize(static_cast<size_t>(std::max(Where::cpu, pinned_on(n_gpu - 1))) + 1);
  for (InputOffsets& offsets : inputs) offsets.fill(kNowhere);
  shared_copies.assign(inputs.size(), kNowhere);
}

ReplayPeaks replay(const ScheduledBlock& scheduled, const ReplayOutlook& outlook, const InputBytes& input_bytes, ReplayState& state) {
  return Replay(scheduled, outlook, input_bytes, state).run();
}

}  // namespace pshard
