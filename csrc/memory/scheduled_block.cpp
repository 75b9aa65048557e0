#include "memory/scheduled_block.hpp"

#include <numeric>

#include "memory/live_bytes.hpp"
#include "memory/memory.hpp"

namespace pshard {

namespace {

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

}  // namespace

size_t end_of_split(const ScheduledBlock& scheduled, size_t first) {
  size_t end = std::min(first + 1, scheduled.operations.size());
  while (end < scheduled.operations.size() && !scheduled.operations[end].starts_split) ++end;
  return end;
}

bool copies_rope_factors(const ScheduledBlock& scheduled, size_t i) {
  return scheduled.operations[i].copies_weight && reads_rope_factors(scheduled.block->operations[i]);
}

int64_t cache_copy_bytes(const ScheduledBlock& scheduled, size_t i, int32_t operand) {
  const CacheOperand& cache = scheduled.block->operations[i].cache[operand == kCache ? 0 : 1];
  return cache.n_bytes + (is_gpu(scheduled.operations[i].device) ? cache.gpu_padding_bytes : 0);
}

bool copies_weight_first(const ScheduledBlock& scheduled, size_t i) {
  if (copies_rope_factors(scheduled, i)) return false;
  for (size_t before = 0; before < i; ++before) {
    if (scheduled.block->operations[before].weight != scheduled.block->operations[i].weight) continue;
    const ScheduledOperation& operation = scheduled.operations[before];
    if (operation.copies_weight && operation.device == scheduled.operations[i].device) return false;
  }
  return true;
}

int64_t weight_copy_bytes(const ScheduledBlock& scheduled, size_t i) {
  const Operation& reader = scheduled.block->operations[i];
  if (reader.weight_part_bytes > 0) return reader.weight_part_bytes;
  return is_gpu(scheduled.operations[i].device) ? gpu_tensor_bytes(*reader.weight) : reader.weight->n_bytes;
}

GraphInput viewed_input(const ScheduledBlock& scheduled, int32_t value) {
  const int32_t base = scheduled.bases[static_cast<size_t>(value)];
  return base != value ? scheduled.block->values[static_cast<size_t>(base)].input : GraphInput::none;
}

std::optional<Beside> part_of_handed(const ScheduledBlock& scheduled, int32_t value) {
  for (size_t b = 0; b < kHandedCount; ++b) {
    const int32_t in = scheduled.block->handed[b].in;
    if (in != kNoValue && scheduled.bases[static_cast<size_t>(value)] == in) return static_cast<Beside>(b);
  }
  return std::nullopt;
}

void ScheduledBlock::hand_on_shared(Neighbours& neighbours) const {
  const Handed& shared = block->handed[static_cast<size_t>(Beside::shared)];
  if (!shared.passes()) {
    neighbours.shared_home.reset();
    if (shared.out != kNoValue) neighbours.shared_home = device_of(homes[static_cast<size_t>(shared.out)]);
    neighbours.shared_copies = 0;
    return;
  }
  for (const ScheduledOperation& operation : operations) {
    if ((whole_reads & place_bit(place_on(operation.device))) != 0) neighbours.shared_copies |= device_bit(operation.device);
  }
}

Where fused_in(const ScheduledBlock& scheduled, const FusedRun& run) {
  return place_on(scheduled.operations[static_cast<size_t>(run.first)].device);
}

Where place_of(GraphInput input, Where lane, InputBits cast_inputs) {
  return is_streamed(lane) && (cast_inputs & input_bit(input)) != 0 ? Where::pinned : lane;
}

void ReadsAhead::append(const ReadsAhead& behind) {
  auto copy = behind.copies.begin();
  int32_t n = 0;
  const auto append_up_to = [&](int32_t n_inputs) {
    for (; copy != behind.copies.end() && copy->n_inputs_before <= n_inputs; ++copy) add(*copy);
  };
  for (const GraphInput input : behind.inputs) {
    append_up_to(n++);
    inputs.add(input);
  }
  append_up_to(n);
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
  std::vector<int32_t> handed_reads;
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
      result.copied_inputs[index(scheduled.device)] |= input_bit(GraphInput::rope_factors);
    }
    for (const int32_t operand : operation.inputs) {
      if (operand == kNoValue) break;
      if (!is_value(operand)) {
        const bool copies = operand != kWeight && scheduled.copies_cache && !is_streamed(scheduled.lane);
        if (first_split && copies) result.first_split.add({.n_bytes = cache_copy_bytes(result, i, operand)});
        if (!first_split || operand != kWeight || !scheduled.copies_weight) continue;
        if (copies_rope_factors(result, i)) result.first_split.inputs.add(GraphInput::rope_factors);
        if (copies_weight_first(result, i)) result.first_split.add({.n_bytes = weight_copy_bytes(result, i)});
        continue;
      }
      const Value& v = block.values[static_cast<size_t>(operand)];
      if (v.is_room) result.homes[static_cast<size_t>(operand)] = place_on(scheduled.device);
      if (const std::optional<Beside> of = part_of_handed(result, operand)) {
        const bool is_whole = operand == block.handed[static_cast<size_t>(Beside::shared)].in;
        const bool is_new = std::find(handed_reads.begin(), handed_reads.end(), operand) == handed_reads.end();
        if (is_new) handed_reads.push_back(operand);
        if (is_new && first_split) result.first_split.add({.n_bytes = v.n_bytes, .of = of, .is_whole = is_whole});
        if (is_whole) {
          result.whole_reads |= place_bit(place_on(scheduled.device));
          continue;
        }
        result.reads_later[static_cast<size_t>(*of)] |= !first_split;
      }
      if (const GraphInput viewed = viewed_input(result, operand); viewed != GraphInput::none) {
        const bool is_new = std::find(handed_reads.begin(), handed_reads.end(), operand) == handed_reads.end();
        if (scheduled.device == Device::host || !is_new) {
          result.inputs[Where::cpu] |= scheduled.device == Device::host ? input_bit(viewed) : 0;
          continue;
        }
        handed_reads.push_back(operand);
        if (first_split) result.first_split.add({.n_bytes = v.n_bytes, .viewed = viewed});
        if (!first_split) result.viewed_later |= input_bit(viewed);
        continue;
      }
      if (!v.is_input) continue;
      const Where place = place_of(v.input, scheduled.lane, cast_inputs);
      result.inputs[place] |= input_bit(v.input);
      if (place != Where::cpu) result.copied_inputs[index(scheduled.device)] |= input_bit(v.input);
      if (first_split) result.first_split.inputs.add(v.input);
    }
  }
  if (n > 0) {
    result.first_lane = result.operations.front().lane;
    result.last_lane = result.operations.back().lane;
    const auto is_work = [](const Operation& operation) { return !operation.is_view; };
    const auto work = std::find_if(block.operations.begin(), block.operations.end(), is_work) - block.operations.begin();
    const bool copies_at_once = static_cast<size_t>(work) < n && result.operations[static_cast<size_t>(work)].copies_weight;
    result.may_continue = !copies_at_once || !neighbours.split_reads;
    result.split_reads = result.operations.back().split_reads;
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

}  // namespace pshard
