#include "stream/executor.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "probe/random.hpp"
#include "stream/checks.hpp"
#include "stream/checksum.hpp"

namespace pshard {
namespace {

constexpr int kNothing = -1;

void fill_halves(Buffer& buffer, uint64_t seed) { fill_random(WeightType::f16, 1, buffer.size() / 2, seed, buffer.data()); }

}  // namespace

Executor::Executor(Backend& backend, const WeightSource& source, std::vector<Schedule> schedules, const ExecutorOptions& options,
                   const std::function<void()>& poll)
    : bench_{.backend = backend, .source = source, .schedules = std::move(schedules), .options = options} {
  if (bench_.schedules.empty()) throw std::invalid_argument("there is no schedule to run");
  if (options.vram_bytes.size() != bench_.schedules.size()) {
    throw std::invalid_argument(std::to_string(options.vram_bytes.size()) + " limits for " + std::to_string(bench_.schedules.size()) +
                                " schedules; give each schedule its own");
  }
  ArenaLimits limits = options.vram_bytes;
  for (std::vector<int64_t>& by_gpu : limits) {
    for (size_t gpu = 0; gpu < by_gpu.size(); ++gpu) {
      by_gpu[gpu] = std::min(by_gpu[gpu], backend.arena_bytes(gpu_device(static_cast<int>(gpu))));
    }
  }
  bench_.layouts = lay_out(bench_.schedules, limits, backend);
  check_sizes();
  for (const Schedule& schedule : bench_.schedules) {
    if (schedule.splits.empty()) throw std::invalid_argument("a schedule without splits");
    auto& sources = bench_.sources.emplace_back();
    auto& checksums = bench_.checksums.emplace_back();
    for (const StreamTensor& tensor : schedule.tensors) {
      sources.push_back(source.bytes(tensor));
      if (!options.check) continue;
      checksums.push_back(checksum(sources.back(), tensor.n_bytes));
      if (poll) poll();
    }
  }
  make_rooms(poll);
  try {
    lock_memory(poll);
  } catch (...) {
    backend.unlock_all();
    throw;
  }
}

Executor::~Executor() {
  drain();
  bench_.backend.unlock_all();
}

void Executor::drain() noexcept {
  loaded_ = kNothing;
  try {
    bench_.backend.finish({});
  } catch (...) {
    // What went wrong first is already on its way to the caller.
  }
}

void Executor::require_sound_source() const {
  if (const std::string fault = bench_.source.fault(); !fault.empty()) throw StreamError(fault);
}

void Executor::carry_out(const std::function<void()>& work, const std::function<void()>& poll) {
  try {
    work();
    bench_.backend.finish(poll);
    require_sound_source();
  } catch (const StreamError&) {
    drain();
    require_sound_source();
    throw;
  } catch (...) {
    drain();
    throw;
  }
}

int64_t Executor::arena_bytes(size_t schedule, Device device) const {
  return bench_.layouts.at(schedule).devices.at(index(device)).n_bytes;
}

void Executor::check_sizes() const {
  for (size_t i = 0; i < bench_.layouts.size(); ++i) {
    for (size_t device = 1; device < bench_.layouts[i].devices.size(); ++device) {
      const int64_t needed = bench_.layouts[i].devices[device].n_bytes;
      const auto& limits = bench_.options.vram_bytes[i];
      const int64_t allowed = device - 1 < limits.size() ? limits[device - 1] : 0;
      const int64_t reserved = bench_.backend.arena_bytes(static_cast<Device>(device));
      if (needed <= std::min(allowed, reserved)) continue;
      throw StreamError("GPU " + std::to_string(device - 1) + ": a pass of " + std::to_string(bench_.schedules[i].n_tokens) +
                        " tokens needs " + std::to_string(needed) + " bytes of the arena, the plan allows " + std::to_string(allowed) +
                        " and " + std::to_string(reserved) + " are reserved; plan again for this budget");
    }
  }
}

// Activations are the same on every device, so that products can be checked without carrying values along.
void Executor::make_rooms(const std::function<void()>& poll) {
  OperandBytes room;
  int64_t passing = 1;
  std::vector<int64_t> caches(bench_.schedules.front().caches.size(), 0);
  for (size_t i = 0; i < bench_.schedules.size(); ++i) {
    const Schedule& schedule = bench_.schedules[i];
    for (int gpu = -1; gpu < schedule.n_gpu; ++gpu) {
      const OperandBytes most = most_bytes(schedule, gpu < 0 ? Device::host : gpu_device(gpu));
      room.x = std::max(room.x, most.x);
      room.y = std::max(room.y, most.y);
      if (gpu < 0) room.fetched = std::max(room.fetched, most.fetched);
    }
    for (const Split& split : schedule.splits) {
      int64_t values = 0;
      for (const ValueMove& value : split.values) values += room_for(value);
      passing = std::max(passing, values);
    }
    for (size_t layer = 0; layer < caches.size(); ++layer) {
      caches[layer] = std::max({caches[layer], schedule.caches[layer].n_bytes, schedule.caches[layer].home_bytes});
    }
  }
  const auto whole = [](int64_t n_bytes) { return (std::max<int64_t>(n_bytes, 1) + 63) / 64 * 64; };
  bench_.x = Buffer(whole(room.x));
  bench_.pattern = Buffer(whole(room.x));
  bench_.y = Buffer(whole(room.y));
  bench_.spoiled = Buffer(whole(bench_.options.check ? std::max(room.x, room.y) : 0));
  bench_.fetched = Buffer(whole(room.fetched));
  bench_.passing = Buffer(whole(passing));
  Random random(1);
  constexpr uint32_t kFiniteHalves = 0xffffbbff;
  for (int64_t i = 0; i < bench_.pattern.size() / 4; ++i) {
    bench_.pattern.as<float>()[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(random.next_float()) & kFiniteHalves);
  }
  std::memcpy(bench_.x.data(), bench_.pattern.data(), static_cast<size_t>(bench_.x.size()));
  std::fill_n(bench_.y.as<float>(), bench_.y.size() / 4, 0.0F);
  std::fill_n(bench_.spoiled.as<float>(), bench_.spoiled.size() / 4, std::numeric_limits<float>::quiet_NaN());
  for (size_t layer = 0; layer < caches.size(); ++layer) {
    bench_.caches.emplace_back(whole(caches[layer]));
    fill_halves(bench_.caches.back(), 3 + layer);
    if (poll) poll();
  }
}

// Layers whose cache passes between host memory and a GPU.
std::set<int32_t> Executor::moving_caches() const {
  std::set<int32_t> layers;
  const std::vector<LayerCache>& first = bench_.schedules.front().caches;
  for (const Schedule& schedule : bench_.schedules) {
    for (size_t layer = 0; layer < schedule.caches.size(); ++layer) {
      if (schedule.caches[layer].home != first[layer].home) layers.insert(static_cast<int32_t>(layer));
    }
    for (const Split& split : schedule.splits) {
      for (const auto* parts : {&split.cache_up, &split.cache_down, &split.cache_fetched}) {
        for (const CachePart& part : *parts) layers.insert(part.layer);
      }
    }
  }
  return layers;
}

// The executor's own rooms come first: every split copies from and to them. Then the weights, in pieces, until the system refuses: the rest
// is staged.
void Executor::lock_memory(const std::function<void()>& poll) {
  const auto uses_gpu = [](const Schedule& schedule) {
    return std::any_of(schedule.splits.begin(), schedule.splits.end(), [](const Split& split) { return is_gpu(split.device); });
  };
  if (std::none_of(bench_.schedules.begin(), bench_.schedules.end(), uses_gpu)) return;
  const auto lock_room = [&](const Buffer& room) {
    if (bench_.backend.lock(room.data(), room.size())) locked_bytes_ += room.size();
  };
  for (const Buffer* room : {&bench_.x, &bench_.y, &bench_.passing, &bench_.fetched, &bench_.pattern, &bench_.spoiled}) lock_room(*room);
  for (const int32_t layer : moving_caches()) lock_room(bench_.caches[static_cast<size_t>(layer)]);
  std::set<std::pair<const uint8_t*, int64_t>> weights;
  for (size_t i = 0; i < bench_.schedules.size(); ++i) {
    const Schedule& schedule = bench_.schedules[i];
    for (const Split& split : schedule.splits) {
      if (!is_gpu(split.device)) continue;
      for (const auto* tensors : {&split.streamed, &split.streamed_experts, &split.offloaded, &split.offloaded_experts}) {
        for (const int32_t tensor : *tensors) {
          weights.emplace(bench_.sources[i][static_cast<size_t>(tensor)], schedule.tensors[static_cast<size_t>(tensor)].n_bytes);
        }
      }
    }
  }
  const int64_t piece = bench_.options.lock_piece_bytes;
  bool refused = false;
  for (const auto& [bytes, n_bytes] : weights) {
    for (int64_t at = 0; at < n_bytes; at += piece) {
      const int64_t n = std::min(piece, n_bytes - at);
      refused = refused || !bench_.backend.lock(bytes + at, n);
      (refused ? staged_bytes_ : locked_bytes_) += n;
      if (poll) poll();
    }
  }
}

void Executor::fill_rooms(size_t schedule) {
  const Schedule& loaded = bench_.schedules[schedule];
  for (int gpu = 0; gpu < loaded.n_gpu; ++gpu) {
    const Device device = gpu_device(gpu);
    const Queue queue{device, Stream::compute};
    const int64_t n_bytes = most_bytes(loaded, device).x;
    if (n_bytes > 0) bench_.backend.copy(queue, bench_.x_of(schedule, device), bench_.pattern.data(), n_bytes);
    bench_.clean[index(device)] = n_bytes;
  }
}

// Caches that live on a GPU in one schedule and not, or elsewhere in its arena, in the other pass through host memory.
void Executor::move_caches(size_t schedule, bool up, SwitchRecord& moved) {
  for (size_t layer = 0; layer < bench_.caches.size(); ++layer) {
    const auto home_in = [&](size_t i) { return bench_.schedules[i].caches[layer].home; };
    const auto offset_in = [&](size_t i) { return bench_.layouts[i].devices[index(home_in(i))].caches[layer]; };
    const bool was_there = loaded_ != kNothing && home_in(static_cast<size_t>(loaded_)) == home_in(schedule) &&
                           (!is_gpu(home_in(schedule)) || offset_in(static_cast<size_t>(loaded_)) == offset_in(schedule));
    if (was_there) continue;
    if (!up && loaded_ == kNothing) continue;
    const auto which = up ? schedule : static_cast<size_t>(loaded_);
    const Device home = home_in(which);
    if (!is_gpu(home)) continue;
    const auto n_layer = static_cast<int32_t>(layer);
    uint8_t* there = bench_.cache_home(which, n_layer);
    const int64_t n_bytes = bench_.schedules[which].caches[layer].n_bytes;
    if (up) {
      bench_.backend.copy({home, Stream::lane_a}, there, bench_.caches[layer].data(), n_bytes);
    } else {
      bench_.backend.copy({home, Stream::down}, bench_.caches[layer].data(), there, n_bytes);
    }
    (up ? moved.up_bytes : moved.down_bytes) += n_bytes;
  }
}

void Executor::bring_up_weights(size_t schedule, SwitchRecord& moved) {
  const Schedule& loading = bench_.schedules[schedule];
  std::set<std::pair<std::string, std::pair<Device, int64_t>>> there;
  if (loaded_ != kNothing) {
    const auto loaded = static_cast<size_t>(loaded_);
    for (size_t i = 0; i < bench_.schedules[loaded].tensors.size(); ++i) {
      const StreamTensor& tensor = bench_.schedules[loaded].tensors[i];
      if (is_gpu(tensor.home)) there.insert({tensor.name, {tensor.home, bench_.layouts[loaded].devices[index(tensor.home)].tensors[i]}});
    }
  }
  for (size_t i = 0; i < loading.tensors.size(); ++i) {
    const StreamTensor& tensor = loading.tensors[i];
    if (!is_gpu(tensor.home)) continue;
    const int64_t offset = bench_.layouts[schedule].devices[index(tensor.home)].tensors[i];
    if (there.contains({tensor.name, {tensor.home, offset}})) continue;
    const Queue lane{tensor.home, Stream::lane_a};
    uint8_t* to = bench_.backend.arena(tensor.home) + offset;
    bench_.backend.copy(lane, to, bench_.sources[schedule][i], tensor.n_bytes);
    moved.up_bytes += tensor.n_bytes;
    if (!bench_.options.check) continue;
    bench_.backend.inspect(lane, to, tensor.n_bytes, [&tensor, expected = bench_.checksums[schedule][i]](const uint8_t* shown) {
      check_shard(tensor.name, shown, tensor.n_bytes, expected);
    });
  }
}

SwitchRecord Executor::load(size_t schedule, const std::function<void()>& poll) {
  SwitchRecord moved;
  if (loaded_ == static_cast<int>(schedule)) return moved;
  if (schedule >= bench_.schedules.size()) throw std::out_of_range("no schedule " + std::to_string(schedule));
  const auto start = std::chrono::steady_clock::now();
  const auto make_resident = [&] {
    move_caches(schedule, false, moved);
    bench_.backend.finish(poll);
    fill_rooms(schedule);
    bring_up_weights(schedule, moved);
    move_caches(schedule, true, moved);
  };
  carry_out(make_resident, poll);
  loaded_ = static_cast<int>(schedule);
  moved.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return moved;
}

PassRecord Executor::run(size_t schedule, const std::function<void()>& poll) {
  load(schedule, poll);
  PassRun pass(bench_, schedule, n_passes_++);
  carry_out([&] { pass.queue(); }, poll);
  return pass.record();
}

}  // namespace pshard
