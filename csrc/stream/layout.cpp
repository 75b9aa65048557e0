#include "stream/layout.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <string>

namespace pshard {
namespace {

constexpr int64_t kAlignment = 128;  // as llama.cpp's CUDA buffers, so that what is planned suffices

constexpr int64_t aligned(int64_t n_bytes) { return (n_bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool has(const std::vector<int32_t>& tensors, int32_t tensor) { return std::find(tensors.begin(), tensors.end(), tensor) != tensors.end(); }

bool is_product(const StreamOperation& work) { return work.kind == OpKind::mul_mat || work.kind == OpKind::mul_mat_id; }

OperandBytes operand_bytes(const Schedule& schedule, const Split& split, const StreamOperation& work) {
  OperandBytes bytes;
  if (is_product(work)) {
    const bool shares_x = work.kind == OpKind::mul_mat_id && !work.has_own_rows;
    const int64_t rows = shares_x ? work.m / std::max<int64_t>(schedule.n_expert_used, 1) : work.m;
    bytes.x = rows * work.k * 4;
    bytes.y = work.m * work.n * 4;
    if (has(split.offloaded, work.tensor) || has(split.offloaded_experts, work.tensor)) {
      bytes.fetched = schedule.tensors[static_cast<size_t>(work.tensor)].n_bytes;
    }
  } else if (work.kind == OpKind::attention) {
    bytes.x = bytes.y = work.attention.n_heads * work.attention.batch * work.attention.head_size * 4;
    for (const CachePart& part : split.cache_fetched) {
      if (part.layer == work.layer) bytes.fetched = schedule.caches[static_cast<size_t>(work.layer)].n_bytes;
    }
  } else {
    bytes.x = work.cache_bytes;
  }
  return bytes;
}

int64_t scratch_bytes(const Schedule& schedule, const StreamOperation& work, const Scratch& scratch) {
  if (work.kind == OpKind::attention) return scratch.scratch_bytes(work.attention);
  if (!is_product(work)) return 0;
  Product product{work.type, work.n, work.k, work.m, 1, work.has_own_rows};
  Routes routes;
  routes.n_used = std::max<int64_t>(schedule.n_expert_used, 1);
  if (work.kind == OpKind::mul_mat_id) {
    product.n_expert = schedule.n_expert;
    product.routes = &routes;
  }
  return scratch.scratch_bytes(product);
}

// The largest offloaded weight that no operation of the split multiplies.
int64_t unused_bytes(const Schedule& schedule, const Split& split) {
  int64_t most = 0;
  for (const int32_t tensor : split.offloaded) {
    const auto uses = [&](const StreamOperation& work) { return work.tensor == tensor; };
    if (std::any_of(split.operations.begin(), split.operations.end(), uses)) continue;
    most = std::max(most, schedule.tensors[static_cast<size_t>(tensor)].n_bytes);
  }
  return most;
}

const Split* first_on_gpu(const Schedule& schedule) {
  const auto first = std::find_if(schedule.splits.begin(), schedule.splits.end(), [](const Split& split) { return is_gpu(split.device); });
  return first == schedule.splits.end() ? nullptr : &*first;
}

// What of the schedule is resident on a device, by name.
std::map<std::string, int64_t> residents(const Schedule& schedule, Device device) {
  std::map<std::string, int64_t> bytes;
  for (const StreamTensor& tensor : schedule.tensors) {
    if (tensor.home == device) bytes[tensor.name] = tensor.n_bytes;
  }
  for (size_t layer = 0; layer < schedule.caches.size(); ++layer) {
    const LayerCache& cache = schedule.caches[layer];
    if (cache.home == device) bytes["cache " + std::to_string(layer)] = std::max(cache.n_bytes, cache.home_bytes);
  }
  return bytes;
}

// When each split begins: see Lying.
class Steps {
 public:
  explicit Steps(const Schedule& schedule) {
    for (const Split& split : schedule.splits) begins_.push_back(begins_.back() + 1 + static_cast<int32_t>(split.operations.size()));
  }
  [[nodiscard]] int32_t begin(size_t split) const { return begins_[split]; }
  [[nodiscard]] int32_t operation(size_t split, size_t operation) const { return begins_[split] + 1 + static_cast<int32_t>(operation); }
  [[nodiscard]] int32_t last(size_t split) const { return begins_[split + 1] - 1; }
  [[nodiscard]] int32_t output() const { return begins_.back(); }

 private:
  std::vector<int32_t> begins_{0};
};

// Lays out what one GPU holds of a schedule.
class DeviceRoom {
 public:
  DeviceRoom(const Schedule& schedule, Device device, const Scratch& scratch, ScheduleLayout& layout)
      : schedule_(schedule),
        device_(device),
        scratch_(scratch),
        layout_(layout),
        here_(layout.devices[index(device)]),
        steps_(schedule),
        x_(static_cast<size_t>(steps_.output()) + 1, 0),
        readers_(x_.size(), nullptr) {}

  // `shared`: places that are given, up to `shared_end`.
  void fill(const std::map<std::string, int64_t>& shared, int64_t shared_end, int64_t limit) {
    here_.x = place_residents(shared, shared_end);
    for (size_t at = 0; at < schedule_.splits.size(); ++at) add(at);
    if (const Split* first = first_on_gpu(schedule_); first != nullptr && first->device == device_) {
      // They come when the pass begins, or any time until the first split here.
      const auto at = static_cast<size_t>(first - schedule_.splits.data());
      for (int32_t step = 0; step <= steps_.begin(at); ++step) reads(step, schedule_.input_bytes);
    }
    if (schedule_.output_device == device_) add(schedule_.output_bytes, steps_.output(), steps_.output(), layout_.output);
    finish(limit);
  }

 private:
  int64_t place_residents(const std::map<std::string, int64_t>& shared, int64_t end) {
    const auto place = [&](const std::string& name, int64_t n_bytes) {
      const auto known = shared.find(name);
      if (known != shared.end()) return known->second;
      const int64_t at = end;
      end += aligned(n_bytes);
      return at;
    };
    for (const StreamTensor& tensor : schedule_.tensors) {
      here_.tensors.push_back(tensor.home == device_ ? place(tensor.name, tensor.n_bytes) : kNowhere);
    }
    for (size_t layer = 0; layer < schedule_.caches.size(); ++layer) {
      const LayerCache& cache = schedule_.caches[layer];
      const std::string name = "cache " + std::to_string(layer);
      here_.caches.push_back(cache.home == device_ ? place(name, std::max(cache.n_bytes, cache.home_bytes)) : kNowhere);
    }
    return end;
  }

  void add(size_t at) {
    const Split& split = schedule_.splits[at];
    for (const ValueMove& value : split.values) {
      if (value.from == device_ || split.device == device_) reads(steps_.begin(at), value.n_bytes);
    }
    if (split.device != device_) return;
    add_streamed(at);
    SplitLayout& places = layout_.splits[at];
    if (const int64_t n_bytes = unused_bytes(schedule_, split); n_bytes > 0) {
      add(n_bytes, steps_.begin(at), steps_.begin(at), places.unused);
    }
    for (size_t i = 0; i < split.operations.size(); ++i) {
      const StreamOperation& work = split.operations[i];
      const OperandBytes bytes = operand_bytes(schedule_, split, work);
      const int32_t step = steps_.operation(at, i);
      reads(step, bytes.x);
      readers_[static_cast<size_t>(step)] = &places.operations[i];
      add(bytes.y, step, step, places.operations[i].y);
      add(bytes.fetched, step, step, places.operations[i].fetched);
      add(scratch_bytes(schedule_, work, scratch_), step, step, places.operations[i].scratch);
    }
  }

  void add_streamed(size_t at) {
    const Split& split = schedule_.splits[at];
    SplitLayout& places = layout_.splits[at];
    const int32_t comes = steps_.begin(at == 0 || lane_is_taken(schedule_, at) ? at : at - 1);
    const auto add_weights = [&](const std::vector<int32_t>& tensors, int32_t first, std::vector<int64_t>& to) {
      for (size_t i = 0; i < tensors.size(); ++i) {
        add(schedule_.tensors[static_cast<size_t>(tensors[i])].n_bytes, first, last_read(at, tensors[i]), to[i]);
      }
    };
    add_weights(split.streamed, comes, places.streamed);
    add_weights(split.streamed_experts, split.is_sliced && split.can_slice ? steps_.begin(at) : comes, places.streamed_experts);
    for (size_t i = 0; i < split.cache_up.size(); ++i) {
      if (first_of_layer(split, i) != i) continue;
      add(schedule_.caches[static_cast<size_t>(split.cache_up[i].layer)].n_bytes, comes, steps_.last(at), places.cache_up[i]);
    }
  }

  [[nodiscard]] int32_t last_read(size_t at, int32_t tensor) const {
    const std::vector<StreamOperation>& operations = schedule_.splits[at].operations;
    for (size_t i = operations.size(); i-- > 0;) {
      if (operations[i].tensor == tensor) return steps_.operation(at, i);
    }
    return steps_.begin(at);
  }

  // Operations find their part of a cache at its own offset.
  static size_t first_of_layer(const Split& split, size_t part) {
    size_t first = 0;
    while (split.cache_up[first].layer != split.cache_up[part].layer) ++first;
    return first;
  }

  void reads(int32_t step, int64_t n_bytes) {
    int64_t& most = x_[static_cast<size_t>(step)];
    most = std::max(most, n_bytes);
  }

  void add(int64_t n_bytes, int32_t first, int32_t last, int64_t& place) {
    if (n_bytes == 0) return;
    tenants_.push_back({n_bytes, first, last});
    places_.push_back(&place);
  }

  void finish(int64_t limit) {
    for (OperationLayout* reader : readers_) {
      if (reader != nullptr) reader->x = here_.x;
    }
    const int64_t most_x = *std::max_element(x_.begin(), x_.end());
    if (here_.x == 0 && most_x == 0 && tenants_.empty()) return;
    const int64_t allowed = (limit - here_.x) / kAlignment * kAlignment;
    Packing packing = pack(tenants_, x_, kAlignment, allowed);
    while (packing.n_bytes > allowed && lift_activations(packing, allowed)) packing = pack(tenants_, x_, kAlignment, allowed);
    const int64_t deepest = *std::max_element(packing.depth.begin(), packing.depth.end());
    here_.n_bytes = here_.x + std::clamp(allowed, packing.n_bytes, std::max(packing.n_bytes, aligned(most_x) + deepest));
    for (size_t i = 0; i < tenants_.size(); ++i) {
      *places_[i] = here_.n_bytes - packing.before_end[i];
      here_.lying.push_back({*places_[i], tenants_[i]});
    }
    for (size_t step = 0; step < x_.size(); ++step) {
      if (x_[step] > 0) here_.lying.push_back({here_.x, {x_[step], static_cast<int32_t>(step), static_cast<int32_t>(step)}});
    }
    for (size_t at = 0; at < schedule_.splits.size(); ++at) finish(at);
  }

  // Those of operations that find no room behind what is resident; whether there were any.
  bool lift_activations(const Packing& packing, int64_t allowed) {
    bool found = false;
    for (size_t step = 0; step < x_.size(); ++step) {
      if (readers_[step] == nullptr || x_[step] == 0 || aligned(x_[step]) + packing.depth[step] <= allowed) continue;
      add(x_[step], static_cast<int32_t>(step), static_cast<int32_t>(step), readers_[step]->x);
      x_[step] = 0;
      found = true;
    }
    return found;
  }

  void finish(size_t at) {
    const Split& split = schedule_.splits[at];
    if (split.device != device_) return;
    SplitLayout& places = layout_.splits[at];
    for (size_t i = 0; i < split.cache_up.size(); ++i) places.cache_up[i] = places.cache_up[first_of_layer(split, i)];
    if (split.cache_down.empty() || at + 1 == schedule_.splits.size()) return;
    for (size_t i = 0; i < split.cache_up.size(); ++i) {
      const int64_t cache = places.cache_up[i];
      const int64_t end = cache + schedule_.caches[static_cast<size_t>(split.cache_up[i].layer)].n_bytes;
      const auto meets = [&](const Lying& other) {
        // What comes ahead waits by itself.
        const bool works = other.tenant.first == other.tenant.last || other.offset == here_.x;
        const bool is_next = other.tenant.first >= steps_.begin(at + 1) && other.tenant.first <= steps_.last(at + 1);
        return works && is_next && other.offset < end && other.offset + other.tenant.n_bytes > cache;
      };
      bool& waits = layout_.splits[at + 1].meets_write_back;
      waits = waits || std::any_of(here_.lying.begin(), here_.lying.end(), meets);
    }
  }

  const Schedule& schedule_;
  Device device_;
  const Scratch& scratch_;
  ScheduleLayout& layout_;
  DeviceLayout& here_;
  Steps steps_;
  std::vector<int64_t> x_;                 // by step: activations behind what is resident
  std::vector<OperationLayout*> readers_;  // by step
  std::vector<Tenant> tenants_;
  std::vector<int64_t*> places_;  // where their offsets go
};

// With what the executor's buffers on the host hold for its operations.
ScheduleLayout without_gpus(const Schedule& schedule) {
  ScheduleLayout layout;
  layout.devices.resize(static_cast<size_t>(schedule.n_gpu) + 1);
  for (const Split& split : schedule.splits) {
    SplitLayout& places = layout.splits.emplace_back();
    places.streamed.assign(split.streamed.size(), kNowhere);
    places.streamed_experts.assign(split.streamed_experts.size(), kNowhere);
    places.cache_up.assign(split.cache_up.size(), kNowhere);
    for (const StreamOperation& work : split.operations) {
      const OperandBytes bytes = operand_bytes(schedule, split, work);
      places.operations.push_back({.x_bytes = bytes.x, .fetched = bytes.fetched > 0 ? 0 : kNowhere});
    }
  }
  return layout;
}

}  // namespace

OperandBytes most_bytes(const Schedule& schedule, Device device) {
  OperandBytes most;
  const auto add = [&](const OperandBytes& bytes) {
    most = {std::max(most.x, bytes.x), std::max(most.y, bytes.y), std::max(most.fetched, bytes.fetched)};
  };
  if (schedule.output_device == device) add({.y = schedule.output_bytes});
  if (const Split* first = first_on_gpu(schedule); first != nullptr && first->device == device) add({.x = schedule.input_bytes});
  for (const Split& split : schedule.splits) {
    for (const ValueMove& value : split.values) {
      if (value.from == device || split.device == device) add({.x = value.n_bytes});
    }
    if (split.device != device) continue;
    for (const StreamOperation& work : split.operations) add(operand_bytes(schedule, split, work));
  }
  return most;
}

std::vector<ScheduleLayout> lay_out(const std::vector<Schedule>& schedules, const ArenaLimits& limits, const Scratch& scratch) {
  std::vector<ScheduleLayout> layouts;
  for (const Schedule& schedule : schedules) layouts.push_back(without_gpus(schedule));
  int n_gpu = 0;
  for (const Schedule& schedule : schedules) n_gpu = std::max(n_gpu, schedule.n_gpu);
  for (int gpu = 0; gpu < n_gpu; ++gpu) {
    const Device device = gpu_device(gpu);
    std::map<std::string, int64_t> shared;
    int64_t shared_end = 0;
    if (schedules.size() > 1) {
      for (const auto& [name, n_bytes] : residents(schedules.front(), device)) {
        const bool in_all = std::all_of(schedules.begin(), schedules.end(), [&](const Schedule& schedule) {
          const auto others = residents(schedule, device);
          const auto other = others.find(name);
          return other != others.end() && other->second == n_bytes;
        });
        if (!in_all) continue;
        shared[name] = shared_end;
        shared_end += aligned(n_bytes);
      }
    }
    for (size_t i = 0; i < schedules.size(); ++i) {
      if (gpu >= schedules[i].n_gpu) continue;
      const int64_t limit = static_cast<size_t>(gpu) < limits[i].size() ? limits[i][static_cast<size_t>(gpu)] : 0;
      DeviceRoom(schedules[i], device, scratch, layouts[i]).fill(shared, shared_end, limit);
    }
  }
  return layouts;
}

ArenaLimits arenas_wanted(const std::vector<Schedule>& schedules, const Scratch& scratch) {
  const ArenaLimits unlimited(schedules.size(), std::vector<int64_t>(kMaxGpus, std::numeric_limits<int64_t>::max()));
  ArenaLimits wanted;
  for (const ScheduleLayout& layout : lay_out(schedules, unlimited, scratch)) {
    std::vector<int64_t>& by_gpu = wanted.emplace_back();
    for (size_t device = 1; device < layout.devices.size(); ++device) by_gpu.push_back(layout.devices[device].n_bytes);
  }
  return wanted;
}

}  // namespace pshard
