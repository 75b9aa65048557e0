#include "stream/layout.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <string>

namespace pshard {
namespace {

constexpr int64_t kAlignment = 128;  // as llama.cpp's CUDA buffers, so that what is planned suffices

constexpr int64_t aligned(int64_t n_bytes) { return (n_bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Gives out bytes one after the other.
class Shelf {
 public:
  explicit Shelf(int64_t begin = 0) : end_(begin) {}
  int64_t take(int64_t n_bytes) {
    const int64_t at = end_;
    end_ += aligned(n_bytes);
    return at;
  }
  [[nodiscard]] int64_t end() const { return end_; }

 private:
  int64_t end_;
};

bool is_product(const StreamOperation& work) { return work.kind == OpKind::mul_mat || work.kind == OpKind::mul_mat_id; }

int64_t scratch_bytes(const Schedule& schedule, Device device, const Backend& backend) {
  int64_t most = 0;
  Routes routes;
  routes.n_used = std::max<int64_t>(schedule.n_expert_used, 1);
  for (const Split& split : schedule.splits) {
    if (split.device != device) continue;
    for (const StreamOperation& work : split.operations) {
      if (is_product(work)) {
        Product product{work.type, work.n, work.k, work.m, 1, work.has_own_rows};
        if (work.kind == OpKind::mul_mat_id) {
          product.n_expert = schedule.n_expert;
          product.routes = &routes;
        }
        most = std::max(most, backend.scratch_bytes(product));
      } else if (work.kind == OpKind::attention) {
        most = std::max(most, backend.scratch_bytes(work.attention));
      }
    }
  }
  return most;
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

DeviceLayout lay_out_one(const Schedule& schedule, Device device, const std::map<std::string, int64_t>& shared, int64_t shared_end,
                         int64_t limit, const Backend& backend) {
  DeviceLayout layout;
  Shelf shelf(shared_end);
  const auto place = [&](const std::string& name, int64_t n_bytes) {
    const auto known = shared.find(name);
    return known != shared.end() ? known->second : shelf.take(n_bytes);
  };
  for (const StreamTensor& tensor : schedule.tensors) {
    layout.tensors.push_back(tensor.home == device ? place(tensor.name, tensor.n_bytes) : kNowhere);
  }
  for (size_t layer = 0; layer < schedule.caches.size(); ++layer) {
    const LayerCache& cache = schedule.caches[layer];
    const std::string name = "cache " + std::to_string(layer);
    layout.caches.push_back(cache.home == device ? place(name, std::max(cache.n_bytes, cache.home_bytes)) : kNowhere);
  }
  int64_t slots[2] = {0, 0};
  bool is_used = !residents(schedule, device).empty();
  for (const Split& split : schedule.splits) {
    if (split.device != device) continue;
    is_used = true;
    int64_t& slot = slots[split.lane == Where::stream_b ? 1 : 0];
    slot = std::max(slot, split_layout(schedule, split).slot_bytes);
  }
  if (!is_used) return layout;
  layout.scratch = shelf.take(scratch_bytes(schedule, device, backend));
  for (int lane = 0; lane < 2; ++lane) layout.slots[lane] = shelf.take(slots[lane]);
  const RoomSizes sizes = room_sizes(schedule, device);
  const int64_t free = (limit - shelf.end()) / kAlignment * kAlignment;
  const int64_t enough = aligned(sizes.most.x) + sizes.most.fetched_before_end();
  layout.room_bytes = std::max(sizes.least, std::min(free, enough));
  layout.room = shelf.take(layout.room_bytes);
  layout.n_bytes = shelf.end();
  return layout;
}

}  // namespace

int64_t RoomUse::y_before_end() const { return aligned(y); }

int64_t RoomUse::fetched_before_end() const { return aligned(y) + aligned(fetched); }

RoomUse room_use(const Schedule& schedule, const Split& split, const StreamOperation& work) {
  RoomUse use;
  const auto has = [](const std::vector<int32_t>& tensors, int32_t tensor) {
    return std::find(tensors.begin(), tensors.end(), tensor) != tensors.end();
  };
  if (is_product(work)) {
    const bool shares_x = work.kind == OpKind::mul_mat_id && !work.has_own_rows;
    const int64_t rows = shares_x ? work.m / std::max<int64_t>(schedule.n_expert_used, 1) : work.m;
    use.x = rows * work.k * 4;
    use.y = work.m * work.n * 4;
    if (has(split.offloaded, work.tensor) || has(split.offloaded_experts, work.tensor)) {
      use.fetched = schedule.tensors[static_cast<size_t>(work.tensor)].n_bytes;
    }
  } else if (work.kind == OpKind::attention) {
    use.x = use.y = work.attention.n_heads * work.attention.batch * work.attention.head_size * 4;
    for (const CachePart& part : split.cache_fetched) {
      if (part.layer == work.layer) use.fetched = schedule.caches[static_cast<size_t>(work.layer)].n_bytes;
    }
  } else {
    use.x = work.cache_bytes;
  }
  return use;
}

RoomSizes room_sizes(const Schedule& schedule, Device device) {
  RoomSizes sizes;
  const auto add = [&](const RoomUse& use) {
    sizes.most.x = std::max(sizes.most.x, use.x);
    sizes.most.y = std::max(sizes.most.y, use.y);
    sizes.most.fetched = std::max(sizes.most.fetched, use.fetched);
    sizes.least = std::max(sizes.least, aligned(use.x) + use.fetched_before_end());
  };
  if (schedule.output_device == device) add({.y = schedule.output_bytes});
  bool takes_inputs = true;  // the first GPU does
  for (const Split& split : schedule.splits) {
    for (const ValueMove& value : split.values) {
      if (value.from == device || split.device == device) add({.x = value.n_bytes});
    }
    if (is_gpu(split.device) && takes_inputs) {
      takes_inputs = false;
      if (split.device == device) add({.x = schedule.input_bytes});
    }
    if (split.device != device) continue;
    // Of weights that no operation here multiplies, too.
    for (const auto* tensors : {&split.offloaded, &split.offloaded_experts}) {
      for (const int32_t tensor : *tensors) add({.fetched = schedule.tensors[static_cast<size_t>(tensor)].n_bytes});
    }
    for (const StreamOperation& work : split.operations) add(room_use(schedule, split, work));
  }
  return sizes;
}

SplitLayout split_layout(const Schedule& schedule, const Split& split) {
  SplitLayout layout;
  const auto place_tensors = [&](const std::vector<int32_t>& tensors, Shelf& shelf, std::vector<int64_t>& at) {
    for (const int32_t tensor : tensors) at.push_back(shelf.take(schedule.tensors[static_cast<size_t>(tensor)].n_bytes));
  };
  // Operations find their part of a cache at its own offset.
  const auto place_caches = [&](const std::vector<CachePart>& parts, Shelf& shelf, std::vector<int64_t>& at) {
    for (const CachePart& part : parts) at.push_back(shelf.take(schedule.caches[static_cast<size_t>(part.layer)].n_bytes));
  };
  Shelf slot;
  place_tensors(split.streamed, slot, layout.streamed);
  place_tensors(split.streamed_experts, slot, layout.streamed_experts);
  place_caches(split.cache_up, slot, layout.cache_up);
  layout.slot_bytes = slot.end();
  return layout;
}

std::vector<std::vector<DeviceLayout>> lay_out(const std::vector<Schedule>& schedules, const ArenaLimits& limits, const Backend& backend) {
  std::vector<std::vector<DeviceLayout>> layouts(schedules.size());
  int n_gpu = 0;
  for (const Schedule& schedule : schedules) n_gpu = std::max(n_gpu, schedule.n_gpu);
  for (int gpu = -1; gpu < n_gpu; ++gpu) {
    const Device device = gpu < 0 ? Device::host : gpu_device(gpu);
    std::map<std::string, int64_t> shared;
    Shelf shelf;
    if (gpu >= 0 && schedules.size() > 1) {
      for (const auto& [name, n_bytes] : residents(schedules.front(), device)) {
        const bool in_all = std::all_of(schedules.begin(), schedules.end(), [&](const Schedule& schedule) {
          const auto others = residents(schedule, device);
          const auto other = others.find(name);
          return other != others.end() && other->second == n_bytes;
        });
        if (in_all) shared[name] = shelf.take(n_bytes);
      }
    }
    for (size_t i = 0; i < schedules.size(); ++i) {
      const int64_t limit = gpu >= 0 && static_cast<size_t>(gpu) < limits[i].size() ? limits[i][static_cast<size_t>(gpu)] : 0;
      layouts[i].push_back(gpu < 0 ? DeviceLayout{} : lay_out_one(schedules[i], device, shared, shelf.end(), limit, backend));
    }
  }
  return layouts;
}

ArenaLimits arenas_wanted(const std::vector<Schedule>& schedules, const Backend& backend) {
  const ArenaLimits unlimited(schedules.size(), std::vector<int64_t>(kMaxGpus, std::numeric_limits<int64_t>::max()));
  ArenaLimits wanted;
  for (const std::vector<DeviceLayout>& layouts : lay_out(schedules, unlimited, backend)) {
    std::vector<int64_t>& by_gpu = wanted.emplace_back();
    for (size_t device = 1; device < layouts.size(); ++device) by_gpu.push_back(layouts[device].n_bytes);
  }
  return wanted;
}

}  // namespace pshard
