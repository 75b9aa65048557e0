#include "stream/layout.hpp"

#include <algorithm>
#include <map>
#include <string>

namespace pshard {
namespace {

constexpr int64_t kAlignment = 128;  // as llama.cpp's CUDA buffers, so that what is planned suffices

// Gives out bytes one after the other.
class Shelf {
 public:
  explicit Shelf(int64_t begin = 0) : end_(begin) {}
  int64_t take(int64_t n_bytes) {
    const int64_t at = end_;
    end_ += (n_bytes + kAlignment - 1) / kAlignment * kAlignment;
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
                         const RoomSizes& room, const Backend& backend) {
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
  int64_t fetched = 0;
  bool is_used = !residents(schedule, device).empty();
  for (const Split& split : schedule.splits) {
    if (split.device != device) continue;
    is_used = true;
    const SplitLayout sizes = split_layout(schedule, split);
    if (is_streamed(split.lane)) {
      int64_t& slot = slots[split.lane == Where::stream_a ? 0 : 1];
      slot = std::max(slot, sizes.slot_bytes);
    }
    fetched = std::max(fetched, sizes.fetched_bytes);
  }
  if (!is_used) return layout;
  layout.x = shelf.take(room.x);
  layout.y = shelf.take(room.y);
  layout.scratch = shelf.take(scratch_bytes(schedule, device, backend));
  layout.fetched = shelf.take(fetched);
  for (int lane = 0; lane < 2; ++lane) layout.slots[lane] = shelf.take(slots[lane]);
  layout.n_bytes = shelf.end();
  return layout;
}

}  // namespace

RoomSizes room_sizes(const Schedule& schedule, Device device) {
  RoomSizes room;
  if (schedule.output_device == device) room.y = schedule.output_bytes;
  bool takes_inputs = true;  // the first GPU does
  for (const Split& split : schedule.splits) {
    for (const ValueMove& value : split.values) {
      if (value.from == device || split.device == device) room.x = std::max(room.x, value.n_bytes);
    }
    if (is_gpu(split.device) && takes_inputs) {
      takes_inputs = false;
      if (split.device == device) room.x = std::max(room.x, schedule.input_bytes);
    }
    if (split.device != device) continue;
    for (const StreamOperation& work : split.operations) {
      if (is_product(work)) {
        const bool shares_x = work.kind == OpKind::mul_mat_id && !work.has_own_rows;
        const int64_t rows = shares_x ? work.m / std::max<int64_t>(schedule.n_expert_used, 1) : work.m;
        room.x = std::max(room.x, rows * work.k * 4);
        room.y = std::max(room.y, work.m * work.n * 4);
      } else if (work.kind == OpKind::attention) {
        const int64_t values = work.attention.n_heads * work.attention.batch * work.attention.head_size;
        room.x = std::max(room.x, values * 4);
        room.y = std::max(room.y, values * 4);
      } else if (work.kind == OpKind::copy) {
        room.x = std::max(room.x, work.cache_bytes);
      }
    }
  }
  return room;
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
  for (const auto* tensors : {&split.offloaded, &split.offloaded_experts}) {
    for (const int32_t tensor : *tensors) {
      layout.fetched_bytes = std::max(layout.fetched_bytes, schedule.tensors[static_cast<size_t>(tensor)].n_bytes);
    }
  }
  for (const CachePart& part : split.cache_fetched) {
    layout.fetched_bytes = std::max(layout.fetched_bytes, schedule.caches[static_cast<size_t>(part.layer)].n_bytes);
  }
  return layout;
}

std::vector<std::vector<DeviceLayout>> lay_out(const std::vector<Schedule>& schedules, const Backend& backend) {
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
      layouts[i].push_back(gpu < 0 ? DeviceLayout{}
                                   : lay_out_one(schedules[i], device, shared, shelf.end(), room_sizes(schedules[i], device), backend));
    }
  }
  return layouts;
}

std::vector<int64_t> arenas_needed(const std::vector<Schedule>& schedules, const Backend& backend) {
  std::vector<int64_t> needed;
  for (const std::vector<DeviceLayout>& layouts : lay_out(schedules, backend)) {
    needed.resize(std::max(needed.size(), layouts.size() - 1), 0);
    for (size_t gpu = 0; gpu + 1 < layouts.size(); ++gpu) needed[gpu] = std::max(needed[gpu], layouts[gpu + 1].n_bytes);
  }
  return needed;
}

}  // namespace pshard
