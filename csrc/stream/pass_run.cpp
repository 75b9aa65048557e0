#include "stream/pass_run.hpp"

#include <algorithm>
#include <memory>

#include "stream/checks.hpp"
#include "stream/checksum.hpp"

namespace pshard {
namespace {

int64_t position(const std::vector<int32_t>& list, int32_t tensor) {
  const auto found = std::find(list.begin(), list.end(), tensor);
  return found == list.end() ? kNowhere : found - list.begin();
}

int64_t position(const std::vector<CachePart>& list, int32_t layer) {
  const auto found = std::find_if(list.begin(), list.end(), [&](const CachePart& part) { return part.layer == layer; });
  return found == list.end() ? kNowhere : found - list.begin();
}

template <typename List>
int64_t offset_in(const List& list, const std::vector<int64_t>& offsets, int32_t item) {
  const int64_t at = position(list, item);
  return at == kNowhere ? kNowhere : offsets[static_cast<size_t>(at)];
}

}  // namespace

uint8_t* Workbench::x_of(size_t schedule, Device device) const {
  return is_gpu(device) ? backend.arena(device) + layouts[schedule].devices[pshard::index(device)].x : x.data();
}

uint8_t* Workbench::cache_home(size_t schedule, int32_t layer) const {
  const auto at = static_cast<size_t>(layer);
  const Device home = schedules[schedule].caches[at].home;
  return is_gpu(home) ? backend.arena(home) + layouts[schedule].devices[pshard::index(home)].caches[at] : caches[at].data();
}

PassRun::PassRun(Workbench& bench, size_t schedule, int64_t pass) : bench_(bench), index_(schedule), schedule_(bench.schedules[schedule]) {
  const size_t n = schedule_.splits.size();
  times_.resize(n);
  arrived_.assign(n, kNoEvent);
  fetched_.assign(n, kNoEvent);
  written_.assign(n, kNoEvent);
  routes_.resize(schedule_.caches.size());
  for (const Split& split : schedule_.splits) {
    for (const StreamOperation& work : split.operations) {
      if (work.kind != OpKind::mul_mat_id || !routes(work.layer).expert.empty()) continue;
      routes_[static_cast<size_t>(work.layer)] = draw_routes(bench.options.routing, work.m / schedule_.n_expert_used, schedule_.n_expert,
                                                             schedule_.n_expert_used, work.layer, pass);
    }
  }
}

void PassRun::wait(Queue queue, Event event) {
  if (event != kNoEvent && bench_.options.order != Order::unordered) bench_.backend.wait(queue, event);
}

Queue PassRun::lane_queue(const Split& split) const {
  return {split.device, split.lane == Where::stream_b ? Stream::lane_b : Stream::lane_a};
}

uint8_t* PassRun::activations(Device device, int64_t n_bytes) {
  uint8_t* const x = bench_.x_of(index_, device);
  int64_t& clean = bench_.clean[pshard::index(device)];
  if (is_gpu(device) && n_bytes > clean) {
    bench_.backend.copy({device, Stream::compute}, x + clean, bench_.pattern.data() + clean, n_bytes - clean);
    clean = n_bytes;
  }
  return x;
}

uint8_t* PassRun::activations(Device device, const OperationLayout& operation) {
  if (!is_gpu(device) || operation.x == bench_.layouts[index_].devices[pshard::index(device)].x) {
    return activations(device, operation.x_bytes);
  }
  uint8_t* const x = place(device, operation.x);
  bench_.backend.copy({device, Stream::compute}, x, bench_.pattern.data(), operation.x_bytes);
  return x;
}

void PassRun::bring(Queue queue, const uint8_t* from, int64_t n_bytes) {
  bench_.backend.copy(queue, bench_.x_of(index_, queue.device), from, n_bytes);
  int64_t& clean = bench_.clean[pshard::index(queue.device)];
  clean = std::max(clean, n_bytes);
}

uint8_t* PassRun::place(Device device, int64_t offset) {
  int64_t& clean = bench_.clean[pshard::index(device)];
  clean = std::min(clean, offset - bench_.layouts[index_].devices[pshard::index(device)].x);
  return bench_.backend.arena(device) + offset;
}

uint8_t* PassRun::result(Device device, int64_t offset) { return is_gpu(device) ? place(device, offset) : bench_.y.data(); }

uint8_t* PassRun::fetched(Device device, int64_t offset) { return is_gpu(device) ? place(device, offset) : bench_.fetched.data(); }

// Slices are copied when the routing is known: when the split is about to run.
bool PassRun::slices(const Split& split) const { return split.is_sliced && split.can_slice; }

// Lanes that wait for nothing soon leave the slots as they are, and products would take the same bytes over and over, out of a cache.
bool PassRun::reads_sources() const { return bench_.options.order == Order::unordered && bench_.backend.reads_host_memory(); }

int64_t PassRun::streamed_at(size_t at, int32_t tensor) const {
  const Split& split = schedule_.splits[at];
  const int64_t offset = offset_in(split.streamed, places(at).streamed, tensor);
  return offset != kNowhere ? offset : offset_in(split.streamed_experts, places(at).streamed_experts, tensor);
}

const uint8_t* PassRun::weights(size_t at, size_t operation) {
  const Split& split = schedule_.splits[at];
  const auto tensor = static_cast<size_t>(split.operations[operation].tensor);
  if (!is_gpu(split.device) || reads_sources()) return bench_.sources[index_][tensor];
  uint8_t* const arena = bench_.backend.arena(split.device);
  const int64_t resident = bench_.layouts[index_].devices[pshard::index(split.device)].tensors[tensor];
  if (resident != kNowhere) return arena + resident;
  const int64_t offset = streamed_at(at, split.operations[operation].tensor);
  if (offset != kNowhere) return arena + offset;
  const int64_t fetched = places(at).operations[operation].fetched;
  if (fetched != kNowhere) return arena + fetched;
  throw StreamError("tensor '" + schedule_.tensors[tensor].name + "' is not where its split runs");
}

uint8_t* PassRun::streamed_cache(size_t at, int32_t layer) const {
  const Split& split = schedule_.splits[at];
  const int64_t offset = offset_in(split.cache_up, places(at).cache_up, layer);
  return offset != kNowhere ? bench_.backend.arena(split.device) + offset : bench_.cache_home(index_, layer);
}

Event PassRun::end_of(size_t split) const { return split < times_.size() ? times_[split].end : start_; }

Event PassRun::may_work_over(Device device, size_t at) const {
  return written_by(device, places(at).meets_write_back ? at : std::max<size_t>(at, 1) - 1);
}

Event PassRun::written_by(Device device, size_t n_splits) const {
  for (size_t at = n_splits; at-- > 0;) {
    if (written_[at] != kNoEvent && schedule_.splits[at].device == device) return written_[at];
  }
  return kNoEvent;
}

void PassRun::bring_inputs() {
  const Split& first = *std::find_if(schedule_.splits.begin(), schedule_.splits.end(), [](const Split& s) { return is_gpu(s.device); });
  bring(compute_queue(first), bench_.x.data(), schedule_.input_bytes);
  static_cast<void>(bench_.backend.record(compute_queue(first)));  // the first split begins behind them
  record_.activation_bytes += schedule_.input_bytes;
}

int64_t PassRun::copy_experts(Queue queue, const Split& split, int32_t tensor, uint8_t* to) {
  const auto& operations = split.operations;
  const auto used = std::find_if(operations.begin(), operations.end(), [&](const StreamOperation& w) { return w.tensor == tensor; });
  const StreamTensor& whole = schedule_.tensors[static_cast<size_t>(tensor)];
  const uint8_t* from = bench_.sources[index_][static_cast<size_t>(tensor)];
  if (used == operations.end()) {  // nothing multiplies them here, so nothing tells which are needed
    bench_.backend.copy(queue, to, from, whole.n_bytes);
    return whole.n_bytes;
  }
  const int64_t bytes = whole.n_bytes / schedule_.n_expert;
  int64_t n_bytes = 0;
  for (const auto& [first, n] : runs_of(routes(used->layer))) {
    bench_.backend.copy(queue, to + first * bytes, from + first * bytes, n * bytes);
    n_bytes += n * bytes;
  }
  return n_bytes;
}

void PassRun::copy_ahead(size_t at) {
  const Split& split = schedule_.splits[at];
  const bool whole_experts = !slices(split) && !split.streamed_experts.empty();
  if (split.streamed.empty() && !whole_experts && split.cache_up.empty()) return;
  const Queue lane = lane_queue(split);
  // One split ahead: not before the split before the last has ended.
  const size_t ahead = bench_.options.order == Order::serial ? 1 : 2;
  wait(lane, at >= ahead ? end_of(at - ahead) : start_);
  // Lanes share an engine: what the split before waits for goes first.
  if (at > 0) {
    wait(lane, arrived_[at - 1]);
    wait(lane, fetched_[at - 1]);
  }
  // A cache comes up once the split before has written it.
  const auto writes = [&](const CachePart& part) {
    const auto& before = schedule_.splits[at - 1].operations;
    return std::any_of(before.begin(), before.end(),
                       [&](const StreamOperation& work) { return work.kind == OpKind::copy && work.layer == part.layer; });
  };
  const bool waits = lane_is_taken(schedule_, at) || (at > 0 && std::any_of(split.cache_up.begin(), split.cache_up.end(), writes));
  if (waits) wait(lane, end_of(at - 1));
  wait(lane, written_by(split.device, waits ? at : std::max<size_t>(at, 1) - 1));
  const SplitLayout& layout = places(at);
  Copy copy{static_cast<int32_t>(at), lane, bench_.backend.begin(lane), kNoEvent, 0, false};
  const auto bring = [&](const uint8_t* from, int64_t offset, int64_t n_bytes) {
    bench_.backend.copy(lane, place(split.device, offset), from, n_bytes);
    copy.n_bytes += n_bytes;
  };
  const auto bring_tensors = [&](const std::vector<int32_t>& tensors, const std::vector<int64_t>& offsets) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto tensor = static_cast<size_t>(tensors[i]);
      bring(bench_.sources[index_][tensor], offsets[i], schedule_.tensors[tensor].n_bytes);
    }
  };
  bring_tensors(split.streamed, layout.streamed);
  if (whole_experts) bring_tensors(split.streamed_experts, layout.streamed_experts);
  for (size_t i = 0; i < split.cache_up.size(); ++i) {
    const CachePart& part = split.cache_up[i];
    bring(bench_.cache_home(index_, part.layer) + part.offset, layout.cache_up[i] + part.offset, part.n_bytes);
  }
  copy.end = arrived_[at] = bench_.backend.record(lane);
  record_.up_bytes += copy.n_bytes;
  copies_.push_back(copy);
}

// Slices of streamed experts, whose routing is known by now, and offloaded weights that no operation here multiplies.
void PassRun::copy_now(size_t at) {
  const Split& split = schedule_.splits[at];
  const bool sliced = slices(split) && !split.streamed_experts.empty();
  std::vector<int32_t> unused;
  for (const int32_t tensor : split.offloaded) {
    const auto uses = [&](const StreamOperation& work) { return work.tensor == tensor; };
    if (std::none_of(split.operations.begin(), split.operations.end(), uses)) unused.push_back(tensor);
  }
  if (unused.empty() && !sliced) return;
  const Queue lane = lane_queue(split);
  wait(lane, at > 0 ? end_of(at - 1) : start_);
  wait(lane, written_by(split.device, at));
  if (!unused.empty()) wait(lane, bench_.backend.record(compute_queue(split)));  // inputs of the pass have come
  Copy copy{static_cast<int32_t>(at), lane, bench_.backend.begin(lane), kNoEvent, 0, false};
  for (const int32_t tensor : unused) {
    const int64_t n_bytes = schedule_.tensors[static_cast<size_t>(tensor)].n_bytes;
    bench_.backend.copy(lane, fetched(split.device, places(at).unused), bench_.sources[index_][static_cast<size_t>(tensor)], n_bytes);
    copy.n_bytes += n_bytes;
  }
  for (size_t i = 0; sliced && i < split.streamed_experts.size(); ++i) {
    copy.n_bytes += copy_experts(lane, split, split.streamed_experts[i], place(split.device, places(at).streamed_experts[i]));
  }
  copy.end = fetched_[at] = bench_.backend.record(lane);
  record_.up_bytes += copy.n_bytes;
  copies_.push_back(copy);
}

// Brings what one operation needs when it is about to run, to the one place that there is for it: nothing hides that.
void PassRun::fetch(size_t at, size_t operation) {
  const Split& split = schedule_.splits[at];
  const StreamOperation& work = split.operations[operation];
  const bool is_dense = position(split.offloaded, work.tensor) != kNowhere;
  const bool is_routed = position(split.offloaded_experts, work.tensor) != kNowhere;
  const int64_t part = work.kind == OpKind::attention ? position(split.cache_fetched, work.layer) : kNowhere;
  if (!is_dense && !is_routed && part == kNowhere) return;
  const Queue queue = compute_queue(split);
  const bool is_up = is_gpu(split.device);
  const Device home = schedule_.caches[static_cast<size_t>(work.layer)].home;
  // The CPU attends where a GPU cannot: also over a cache that would have been streamed, and is in host memory.
  const Queue lane = is_up ? lane_queue(split) : is_gpu(home) ? Queue{home, Stream::down} : queue;
  wait(lane, bench_.backend.record(queue));  // the operation before has used what was there
  Copy copy{static_cast<int32_t>(at), lane, bench_.backend.begin(lane), kNoEvent, 0, true};
  uint8_t* const to = fetched(split.device, places(at).operations[operation].fetched);
  if (part != kNowhere) {
    copy.n_bytes = split.cache_fetched[static_cast<size_t>(part)].n_bytes;
    bench_.backend.copy(lane, to, bench_.cache_home(index_, work.layer), copy.n_bytes);
  } else if (is_routed) {
    copy.n_bytes = copy_experts(lane, split, work.tensor, to);
  } else {
    copy.n_bytes = schedule_.tensors[static_cast<size_t>(work.tensor)].n_bytes;
    bench_.backend.copy(lane, to, bench_.sources[index_][static_cast<size_t>(work.tensor)], copy.n_bytes);
  }
  copy.end = bench_.backend.record(lane);
  wait(queue, copy.end);
  (is_up ? record_.up_bytes : record_.down_bytes) += copy.n_bytes;
  copies_.push_back(copy);
  if (!bench_.options.check || part != kNowhere) return;
  if (is_routed) {
    check_slices(split, work, to);
  } else {
    const auto tensor = static_cast<size_t>(work.tensor);
    check_bytes(queue, schedule_.tensors[tensor].name, to, copy.n_bytes, bench_.checksums[index_][tensor]);
  }
}

// What a split reads that another device has computed: from there to the host, each value to a place of its own, and from the host on.
void PassRun::bring_values(size_t at) {
  const Split& split = schedule_.splits[at];
  const Queue queue = compute_queue(split);
  uint8_t* passing = bench_.passing.data();
  for (const ValueMove& value : split.values) {
    const uint8_t* from = bench_.x.data();
    if (is_gpu(value.from)) {
      const Queue there{value.from, Stream::compute};
      wait(there, at > 0 ? end_of(at - 1) : start_);  // whoever read what passed before
      wait(there, may_work_over(value.from, at));
      if (bench_.options.check) bench_.backend.copy(there, passing, bench_.spoiled.data(), value.n_bytes);
      bench_.backend.copy(there, passing, activations(value.from, value.n_bytes), value.n_bytes);
      wait(queue, bench_.backend.record(there));
      record_.activation_bytes += value.n_bytes;
      from = passing;
      passing += room_for(value);
    }
    if (bench_.options.check) bench_.backend.copy(queue, bench_.x_of(index_, split.device), bench_.spoiled.data(), value.n_bytes);
    bring(queue, from, value.n_bytes);
    if (is_gpu(split.device)) record_.activation_bytes += value.n_bytes;
  }
}

void PassRun::multiply(Queue queue, size_t at, size_t operation) {
  const StreamOperation& work = schedule_.splits[at].operations[operation];
  const OperationLayout& where = places(at).operations[operation];
  const bool is_routed = work.kind == OpKind::mul_mat_id;
  Product product{work.type, work.n, work.k, work.m, is_routed ? schedule_.n_expert : 1, work.has_own_rows};
  product.routes = is_routed ? &routes(work.layer) : nullptr;
  product.weights = weights(at, operation);
  product.y = reinterpret_cast<float*>(result(queue.device, where.y));
  if (where.scratch != kNowhere) product.scratch = place(queue.device, where.scratch);
  product.x = reinterpret_cast<const float*>(activations(queue.device, where));
  if (bench_.options.check) {
    bench_.backend.copy(queue, reinterpret_cast<uint8_t*>(product.y), bench_.spoiled.data(),
                        std::min(work.n * work.m * 4, bench_.spoiled.size()));
  }
  bench_.backend.multiply(queue, product);
  if (!bench_.options.check) return;
  ++record_.n_checked;
  const StreamTensor& tensor = schedule_.tensors[static_cast<size_t>(work.tensor)];
  const uint8_t* source = bench_.sources[index_][static_cast<size_t>(work.tensor)];
  bench_.backend.inspect(queue, reinterpret_cast<const uint8_t*>(product.y), work.n * work.m * 4,
                         [this, product, source, name = tensor.name](const uint8_t* shown) {
                           check_product(name, product, source, bench_.pattern.as<float>(), reinterpret_cast<const float*>(shown),
                                         bench_.backend);
                         });
}

void PassRun::attend(Queue queue, size_t at, size_t operation) {
  const StreamOperation& work = schedule_.splits[at].operations[operation];
  const OperationLayout& where = places(at).operations[operation];
  AttentionWork attention{work.attention};
  attention.cache = where.fetched != kNowhere ? fetched(queue.device, where.fetched) : streamed_cache(at, work.layer);
  attention.y = reinterpret_cast<float*>(result(queue.device, where.y));
  if (where.scratch != kNowhere) attention.scratch = place(queue.device, where.scratch);
  attention.x = reinterpret_cast<const float*>(activations(queue.device, where));
  bench_.backend.attend(queue, attention);
  if (!bench_.options.check) return;
  bench_.backend.check_attention(queue, attention);
  ++record_.n_checked;
}

void PassRun::check_bytes(Queue queue, const std::string& name, const uint8_t* bytes, int64_t n_bytes, uint64_t expected) {
  ++record_.n_checked;
  bench_.backend.inspect(queue, bytes, n_bytes, [=](const uint8_t* shown) { check_shard(name, shown, n_bytes, expected); });
}

void PassRun::check_slices(const Split& split, const StreamOperation& work, const uint8_t* bytes) {
  const StreamTensor& tensor = schedule_.tensors[static_cast<size_t>(work.tensor)];
  const int64_t each = tensor.n_bytes / schedule_.n_expert;
  for (const auto& [first, n] : runs_of(routes(work.layer))) {
    const uint8_t* source = bench_.sources[index_][static_cast<size_t>(work.tensor)] + first * each;
    check_bytes(compute_queue(split), tensor.name, bytes + first * each, n * each, checksum(source, n * each));
  }
}

void PassRun::check_streamed(const Split& split, int32_t tensor, int64_t offset) {
  const uint8_t* const bytes = bench_.backend.arena(split.device) + offset;
  if (slices(split) && position(split.streamed_experts, tensor) != kNowhere) {
    for (const StreamOperation& work : split.operations) {
      if (work.tensor == tensor) return check_slices(split, work, bytes);
    }
  }
  const auto i = static_cast<size_t>(tensor);
  check_bytes(compute_queue(split), schedule_.tensors[i].name, bytes, schedule_.tensors[i].n_bytes, bench_.checksums[index_][i]);
}

void PassRun::check_streamed(size_t at) {
  const Split& split = schedule_.splits[at];
  for (const auto* tensors : {&split.streamed, &split.streamed_experts}) {
    for (const int32_t tensor : *tensors) check_streamed(split, tensor, streamed_at(at, tensor));
  }
}

// That nobody has written over them meanwhile.
void PassRun::check_read(size_t at, size_t operation) {
  const Split& split = schedule_.splits[at];
  const int32_t tensor = split.operations[operation].tensor;
  const int64_t offset = tensor >= 0 ? streamed_at(at, tensor) : kNowhere;
  const auto again = [&](const StreamOperation& work) { return work.tensor == tensor; };
  const auto behind = split.operations.begin() + static_cast<std::ptrdiff_t>(operation) + 1;
  if (offset == kNowhere || std::any_of(behind, split.operations.end(), again)) return;
  check_streamed(split, tensor, offset);
}

void PassRun::compute(size_t at) {
  const Split& split = schedule_.splits[at];
  const Queue queue = compute_queue(split);
  wait(queue, at > 0 ? end_of(at - 1) : start_);
  wait(queue, arrived_[at]);
  wait(queue, fetched_[at]);
  wait(queue, may_work_over(split.device, at));
  times_[at].begin = bench_.backend.begin(queue);
  bring_values(at);
  times_[at].compute = split.values.empty() ? times_[at].begin : bench_.backend.record(queue);
  if (bench_.options.check) check_streamed(at);
  for (size_t i = 0; i < split.operations.size(); ++i) {
    const StreamOperation& work = split.operations[i];
    fetch(at, i);
    if (work.kind == OpKind::copy) {
      bench_.backend.copy(queue, streamed_cache(at, work.layer) + work.cache_offset, activations(split.device, places(at).operations[i]),
                          work.cache_bytes);
    } else if (work.kind == OpKind::attention) {
      attend(queue, at, i);
    } else {
      multiply(queue, at, i);
    }
    if (bench_.options.check) check_read(at, i);
  }
  times_[at].end = bench_.backend.record(queue);
}

void PassRun::write_back(size_t at) {
  const Split& split = schedule_.splits[at];
  if (split.cache_down.empty()) return;
  const Queue down{split.device, Stream::down};
  wait(down, times_[at].end);
  Copy copy{static_cast<int32_t>(at), down, bench_.backend.begin(down), kNoEvent, 0, false};
  for (const CachePart& part : split.cache_down) {
    const uint8_t* from = streamed_cache(at, part.layer) + part.offset;
    uint8_t* home = bench_.cache_home(index_, part.layer) + part.offset;
    if (from == home) continue;  // nothing of it came up
    bench_.backend.copy(down, home, from, part.n_bytes);
    copy.n_bytes += part.n_bytes;
    if (!bench_.options.check) continue;
    ++record_.n_checked;
    bench_.backend.inspect(down, from, part.n_bytes, [home, n = part.n_bytes, layer = part.layer](const uint8_t* shown) {
      check_shard("cache of layer " + std::to_string(layer), shown, n, checksum(home, n));
    });
  }
  copy.end = written_[at] = bench_.backend.record(down);
  record_.down_bytes += copy.n_bytes;
  copies_.push_back(copy);
}

void PassRun::send_outputs() {
  const Queue queue{schedule_.output_device, Stream::compute};
  const uint8_t* const logits = result(schedule_.output_device, bench_.layouts[index_].output);
  bench_.backend.copy(queue, bench_.y.data(), logits, schedule_.output_bytes);
  record_.activation_bytes += schedule_.output_bytes;
}

void PassRun::queue() {
  bench_.backend.forget_events();
  const size_t n = schedule_.splits.size();
  const Queue first = compute_queue(schedule_.splits.front());
  start_ = bench_.backend.record(first);
  copy_ahead(0);
  if (schedule_.input_bytes > 0) bring_inputs();
  for (size_t at = 0; at < n; ++at) {
    copy_now(at);
    compute(at);
    write_back(at);
    // Queued behind the split's own work, it begins with it: the lane waits for the split before alone.
    if (at + 1 < n) copy_ahead(at + 1);
  }
  if (schedule_.output_bytes > 0) send_outputs();
  end_ = bench_.backend.record({schedule_.output_bytes > 0 ? schedule_.output_device : schedule_.splits.back().device, Stream::compute});
}

PassRecord PassRun::record() const {
  PassRecord record = record_;
  const double start = bench_.backend.seconds(start_);
  const auto since_start = [&](Event event) { return bench_.backend.seconds(event) - start; };
  record.seconds = since_start(end_);
  for (const Times& times : times_) {
    record.splits.push_back({since_start(times.begin), since_start(times.end) - since_start(times.compute), since_start(times.end)});
  }
  for (const Copy& copy : copies_) {
    record.copies.push_back({copy.split, copy.queue, since_start(copy.begin), since_start(copy.end), copy.n_bytes});
    record.seconds = std::max(record.seconds, record.copies.back().end_seconds);
    const CopyRecord& copied = record.copies.back();
    if (copy.is_within) record.splits[static_cast<size_t>(copy.split)].compute_seconds -= copied.end_seconds - copied.begin_seconds;
  }
  if (bench_.options.order == Order::unordered) {
    for (const SplitRecord& split : record.splits) record.seconds = std::max(record.seconds, split.end_seconds);
  }
  return record;
}

}  // namespace pshard
