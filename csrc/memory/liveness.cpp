#include "memory/liveness.hpp"

#include <algorithm>

#include "memory/memory.hpp"

namespace pshard {

namespace {

constexpr int64_t kGpuAlignment = 128;
constexpr int64_t kHostAlignment = 32;

int64_t pad(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

Device other(Device device) { return device == Device::gpu ? Device::host : Device::gpu; }

// A value on one device: its home, or the copy that a split on the other device made.
struct Instance {
  int32_t readers = 0;
  bool live = false;
};

class Replay {
 public:
  Replay(const Block& block, const BlockPlacement& placement, const BlockSurroundings& surroundings)
      : block_(block), operations_(schedule(block, placement, surroundings.neighbours)), home_(block.values.size(), Device::host),
        instances_(2 * block.values.size()) {
    for (size_t i = 0; i < operations_.size(); ++i) {
      const int32_t output = block.operations[i].output;
      if (output != kNoValue) home_[static_cast<size_t>(output)] = operations_[i].device;
    }
    if (block.residual_in != kNoValue) {
      home_[static_cast<size_t>(block.residual_in)] = surroundings.residual;
      add(block.residual_in, surroundings.residual);
    }
    for (size_t i = 0; i < operations_.size(); ++i) {
      for_each_input(i, [&](int32_t value) { ++at(value, operations_[i].device).readers; });
    }
    for (const FusedRun& run : block.fused) {
      if (is_fused(run)) ++at(run.value, Device::gpu).readers;
    }
    if (block.residual_out != kNoValue) ++at(block.residual_out, home(block.residual_out)).readers;
    // Making the copy is one more read of the original.
    for (size_t v = 0; v < home_.size(); ++v) {
      const auto value = static_cast<int32_t>(v);
      if (!is_input(value) && at(value, other(home_[v])).readers > 0) ++at(value, home_[v]).readers;
    }
  }

  BlockBuffers run(const BlockPlacement& placement, int64_t slot_bytes) {
    slot_bytes_ = slot_bytes;
    for (size_t first = 0; first < operations_.size();) {
      size_t end = first + 1;
      while (end < operations_.size() && !operations_[end].starts_split) ++end;
      run_split(first, end, placement);
      first = end;
    }
    result_.residual = block_.residual_out == kNoValue ? Device::host : home(block_.residual_out);
    return result_;
  }

 private:
  [[nodiscard]] bool is_input(int32_t value) const { return block_.values[static_cast<size_t>(value)].is_input; }
  [[nodiscard]] Device home(int32_t value) const { return home_[static_cast<size_t>(value)]; }
  Instance& at(int32_t value, Device device) { return instances_[2 * static_cast<size_t>(value) + static_cast<size_t>(device)]; }

  template <typename Visit>
  void for_each_input(size_t operation, Visit visit) const {
    for (const int32_t value : block_.operations[operation].inputs) {
      if (value != kNoValue) visit(value);
    }
  }

  [[nodiscard]] int64_t bytes(int32_t value, Device device) const {
    const Value& v = block_.values[static_cast<size_t>(value)];
    return device == Device::gpu ? pad(v.n_bytes + v.gpu_scratch_bytes, kGpuAlignment) : pad(v.n_bytes, kHostAlignment);
  }

  void grow(Device device, int64_t n_bytes) {
    live_[static_cast<size_t>(device)] += n_bytes;
    if (device == Device::host) {
      result_.host_bytes = std::max(result_.host_bytes, live_[static_cast<size_t>(device)]);
    } else {
      split_peak_ = std::max(split_peak_, live_[static_cast<size_t>(device)]);
    }
  }
  void shrink(Device device, int64_t n_bytes) { live_[static_cast<size_t>(device)] -= n_bytes; }

  void add(int32_t value, Device device) {
    at(value, device).live = true;
    grow(device, bytes(value, device));
  }

  void release(int32_t value, Device device) {
    Instance& instance = at(value, device);
    if (--instance.readers > 0 || !instance.live) return;
    instance.live = false;
    shrink(device, bytes(value, device));
  }

  // The copies that a split needs exist from its start.
  int64_t open_split(size_t first, size_t end, const BlockPlacement& placement) {
    int64_t copies = 0;
    for (size_t i = first; i < end; ++i) {
      const Device device = operations_[i].device;
      const Operation& operation = block_.operations[i];
      for_each_input(i, [&](int32_t value) {
        if (is_input(value)) {
          note_input(value, device);
        } else if (home(value) != device && !at(value, device).live) {
          add(value, device);
          release(value, home(value));
        }
      });
      if (operations_[i].copies_weight) copies += gpu_tensor_bytes(*operation.weight);
      if (operations_[i].copies_cache && !is_streamed(placement.of(operation.group))) copies += pad(operation.cache_bytes, kGpuAlignment);
    }
    return copies;
  }

  [[nodiscard]] bool is_fused(const FusedRun& run) const {
    if (home(run.value) != Device::gpu) return false;
    for (int32_t i = run.first; i <= run.last; ++i) {
      const ScheduledOperation& operation = operations_[static_cast<size_t>(i)];
      if (operation.device != Device::gpu || (i > run.first && operation.starts_split)) return false;
    }
    return true;
  }

  void note_input(int32_t value, Device device) {
    const uint32_t bit = 1U << static_cast<unsigned>(block_.values[static_cast<size_t>(value)].input);
    (device == Device::gpu ? result_.gpu_inputs : result_.host_inputs) |= bit;
  }

  int64_t streamed_bytes(size_t first, size_t end, const BlockPlacement& placement) const {
    int64_t total = 0;
    bool slot = false;
    for (size_t i = first; i < end; ++i) {
      const Operation& operation = block_.operations[i];
      if (operation.weight != nullptr && is_streamed(operations_[i].lane) && is_streamed(placement.of(operation.group))) {
        total += gpu_tensor_bytes(*operation.weight);
      }
      if (operation.cache_bytes > 0 && is_streamed(placement.of(operation.group)) && !slot) {
        slot = true;
        total += slot_bytes_;
      }
    }
    return total;
  }

  void run_split(size_t first, size_t end, const BlockPlacement& placement) {
    const Device device = operations_[first].device;
    const int64_t streamed = streamed_bytes(first, end, placement);
    // The next split of the block is being copied while this one runs.
    size_t next_end = end;
    while (next_end < operations_.size() && (next_end == end || !operations_[next_end].starts_split)) ++next_end;
    const int64_t prefetched = streamed_bytes(end, next_end, placement);
    if (first == 0) result_.first_stream_bytes = streamed;
    result_.last_stream_bytes = streamed;
    result_.stream_bytes = std::max(result_.stream_bytes, streamed + prefetched);

    live_[static_cast<size_t>(Device::gpu)] += streamed + prefetched;
    split_peak_ = live_[static_cast<size_t>(Device::gpu)];
    const int64_t copies = open_split(first, end, placement);
    grow(device, copies);
    for (size_t i = first; i < end; ++i) run_operation(i);
    shrink(device, copies);
    live_[static_cast<size_t>(Device::gpu)] -= streamed + prefetched;
    result_.gpu_last_split_bytes = split_peak_;
    result_.gpu_bytes = std::max(result_.gpu_bytes, split_peak_);
  }

  void run_operation(size_t i) {
    const Operation& operation = block_.operations[i];
    const Device device = operations_[i].device;
    if (operation.output != kNoValue && !reuse(operation, device)) add(operation.output, device);
    for_each_input(i, [&](int32_t value) {
      if (!is_input(value)) release(value, device);
    });
    for (const FusedRun& run : block_.fused) {
      if (static_cast<size_t>(run.last) == i && is_fused(run)) release(run.value, Device::gpu);
    }
  }

  bool reuse(const Operation& operation, Device device) {
    if (!operation.in_place) return false;
    for (const int32_t value : operation.inputs) {
      if (value == kNoValue || is_input(value)) continue;
      Instance& parent = at(value, device);
      if (!parent.live || parent.readers != 1 || bytes(value, device) != bytes(operation.output, device)) continue;
      parent.live = false;
      at(operation.output, device).live = true;
      return true;
    }
    return false;
  }

  const Block& block_;
  std::vector<ScheduledOperation> operations_;
  std::vector<Device> home_;
  std::vector<Instance> instances_;
  std::array<int64_t, 2> live_{};
  int64_t split_peak_ = 0;
  int64_t slot_bytes_ = 0;
  BlockBuffers result_;
};

}  // namespace

void collect_inputs(const Block& block, InputBytes& bytes) {
  for (const Value& value : block.values) {
    if (value.is_input) bytes[static_cast<size_t>(value.input)] = value.n_bytes;
  }
}

BlockBuffers block_buffers(const Block& block, const BlockPlacement& placement, const BlockSurroundings& surroundings, int64_t slot_bytes) {
  return Replay(block, placement, surroundings).run(placement, slot_bytes);
}

}  // namespace pshard
