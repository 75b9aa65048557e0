#include "cost/timeline.hpp"

#include <algorithm>

#include "model/schedule.hpp"

namespace pshard {
namespace {

void join(Segment& split, const Segment& more) {
  split.compute += more.compute;
  split.dram_bytes += more.dram_bytes;
  split.prefetch_bytes += more.prefetch_bytes;
  split.prefetch_seconds += more.prefetch_seconds;
  split.experts_whole_bytes += more.experts_whole_bytes;
  split.experts_whole_seconds += more.experts_whole_seconds;
  split.experts_sliced_bytes += more.experts_sliced_bytes;
  split.experts_sliced_seconds += more.experts_sliced_seconds;
  // Slices need routing that is known when the split begins; a joined layer's router runs inside the split.
  if (more.experts_whole_bytes > 0.0) split.experts_can_slice = false;
  split.exposed_bytes += more.exposed_bytes;
  split.exposed_seconds += more.exposed_seconds;
  split.write_back_bytes += more.write_back_bytes;
  split.write_back_seconds += more.write_back_seconds;
  split.activation_up_bytes += more.activation_up_bytes;
  split.activation_up_seconds += more.activation_up_seconds;
  split.activation_down_bytes += more.activation_down_bytes;
  split.activation_down_seconds += more.activation_down_seconds;
}

bool streams(const Segment& segment) { return segment.prefetch_bytes > 0.0 || segment.experts_whole_bytes > 0.0; }

constexpr size_t index(Lane lane) { return static_cast<size_t>(lane); }

// Wall time of `a` and `b` seconds of work side by side, each slowed to a fraction of its rate while the other runs; never worse than one
// after the other.
double contended(double a, double a_fraction, double b, double b_fraction) {
  if (a <= 0.0 || b <= 0.0) return a + b;
  const double b_last = b + a * (1.0 - b_fraction) / a_fraction;
  const double a_last = a + b * (1.0 - a_fraction) / b_fraction;
  return std::min(a + b, std::max(a_last, b_last));
}

}  // namespace

Lane PassTime::bottleneck() const {
  const auto largest = std::max_element(critical_seconds.begin(), critical_seconds.end());
  return static_cast<Lane>(largest - critical_seconds.begin());
}

void Timeline::charge(Lane lane, double seconds) {
  total_.seconds += seconds;
  total_.critical_seconds[index(lane)] += seconds;
}

void Timeline::charge_exposed(double n_bytes, double seconds) {
  const double dram = n_bytes / machines_.host().host_bytes_per_second;
  charge(dram > seconds ? Lane::host_memory : Lane::up, std::max(dram, seconds));
}

Timeline::Overlap Timeline::overlap(const Segment& split, double copy_seconds, double copy_bytes) const {
  const Machine& machine = machines_.of(split.backend);
  const double compute = split.compute.seconds;
  Overlap result{};
  if (split.backend != Where::cpu) {
    const double compute_path = compute + split.write_back_seconds;
    // With one copy engine the write-back and the copy for the next split take turns.
    const double copy_path = copy_seconds + (machine.copy_engines == 1 ? split.write_back_seconds : 0.0);
    result = compute_path >= copy_path ? Overlap{compute_path, Lane::gpu} : Overlap{copy_path, Lane::up};
    // Where GPU and host share a memory, kernels and copies slow each other down.
    const double both = contended(compute, machine.gpu_rate_under_copy, copy_seconds, machine.copy_rate_under_gpu);
    if (both > result.seconds) result = {both, compute >= copy_seconds ? Lane::gpu : Lane::up};
  } else {
    const double both = contended(compute, machine.cpu_rate_under_copy, copy_seconds, machine.copy_rate_under_cpu);
    result = {both, compute >= copy_seconds ? Lane::cpu : Lane::up};
  }
  const double dram = (split.dram_bytes + copy_bytes) / machines_.host().host_bytes_per_second;
  return dram > result.seconds ? Overlap{dram, Lane::host_memory} : result;
}

void Timeline::run(const Segment& split, const Segment& next) {
  const bool on_gpu = split.backend != Where::cpu;
  const double host_bytes_per_second = machines_.host().host_bytes_per_second;
  SplitTime ran;
  ran.backend = split.backend;
  ran.begin_seconds = total_.seconds;
  ran.compute_seconds = split.compute.seconds;
  ran.write_back_seconds = split.write_back_seconds;
  const auto copy_seconds = [&](double n_bytes, double seconds) { return seconds + n_bytes * unlocked_seconds_per_byte_; };
  const double exposed_seconds = copy_seconds(split.exposed_bytes, split.exposed_seconds);
  charge(Lane::up, split.activation_up_seconds);
  charge(Lane::down, split.activation_down_seconds);
  const double exposed_begin = total_.seconds;
  charge_exposed(split.exposed_bytes, exposed_seconds);
  ran.compute_begin_seconds = total_.seconds;
  ran.exposed_seconds = total_.seconds - exposed_begin;

  const double dense_seconds = copy_seconds(next.prefetch_bytes, next.prefetch_seconds);
  double copied_bytes = next.prefetch_bytes + next.experts_whole_bytes;
  double copied_seconds = dense_seconds + copy_seconds(next.experts_whole_bytes, next.experts_whole_seconds);
  const bool slot_in_use = next.backend == split.backend;  // the same lane: its slot is free only when this split ends
  Overlap step = slot_in_use ? overlap(split, 0.0, 0.0) : overlap(split, copied_seconds, copied_bytes);
  if (slot_in_use) charge_exposed(copied_bytes, copied_seconds);
  bool is_sliced = false;
  if (next.experts_whole_bytes > 0.0 && next.experts_can_slice && !slot_in_use) {
    const Overlap without_experts = overlap(split, dense_seconds, next.prefetch_bytes);
    const double slices_seconds = copy_seconds(next.experts_sliced_bytes, next.experts_sliced_seconds);
    const double slices_dram = next.experts_sliced_bytes / host_bytes_per_second;
    if (without_experts.seconds + std::max(slices_seconds, slices_dram) < step.seconds) {
      step = without_experts;
      is_sliced = true;
      charge_exposed(next.experts_sliced_bytes, slices_seconds);
      copied_bytes = next.prefetch_bytes + next.experts_sliced_bytes;
      copied_seconds = dense_seconds + slices_seconds;
    }
  }
  if (step.winner == Lane::gpu) {
    const double down = std::min(split.write_back_seconds, step.seconds - split.compute.seconds);
    charge(Lane::gpu, step.seconds - down);
    charge(Lane::down, down);
  } else {
    charge(step.winner, step.seconds);
  }

  total_.spread_seconds += split.compute.spread_seconds;
  total_.basis = std::max(total_.basis, split.compute.basis);
  total_.busy_seconds[index(on_gpu ? Lane::gpu : Lane::cpu)] += split.compute.seconds;
  total_.busy_seconds[index(Lane::up)] += copied_seconds + exposed_seconds + split.activation_up_seconds;
  total_.busy_seconds[index(Lane::down)] += split.write_back_seconds + split.activation_down_seconds;
  total_.busy_seconds[index(Lane::host_memory)] += (split.dram_bytes + copied_bytes + split.exposed_bytes) / host_bytes_per_second;
  total_.weights_up_bytes += copied_bytes + split.exposed_bytes;
  total_.activation_bytes += split.activation_up_bytes + split.activation_down_bytes;
  total_.write_back_bytes += split.write_back_bytes;

  const bool next_on_gpu = next.backend != Where::cpu;
  if (device_of(split.backend) != device_of(next.backend)) {
    const double seconds =
        next_on_gpu ? machines_.of(next.backend).handoff_to_gpu_seconds : machines_.of(split.backend).handoff_to_cpu_seconds;
    charge(Lane::handoff, seconds);
    total_.busy_seconds[index(Lane::handoff)] += seconds;
  } else if (on_gpu && next.backend != split.backend) {
    const double seconds = machines_.of(split.backend).gpu.op_seconds;  // one event wait between two streams of the GPU
    charge(Lane::gpu, seconds);
    total_.busy_seconds[index(Lane::gpu)] += seconds;
  }
  ran.end_seconds = total_.seconds;
  if (splits_ != nullptr) note(ran, slot_in_use, copied_seconds, is_sliced);
}

// Called once for the split that runs, when its next one's copies are known: what comes before the first split has none. What is known of
// its own copies was noted with the split before.
void Timeline::note(const SplitTime& ran, bool slot_in_use, double next_copy_seconds, bool is_sliced) {
  if (!splits_->empty()) {
    const SplitTime ahead = splits_->back();
    splits_->back() = ran;
    splits_->back().copy_begin_seconds = ahead.copy_begin_seconds;
    splits_->back().copy_seconds = ahead.copy_seconds;
    splits_->back().is_sliced = ahead.is_sliced;
  }
  SplitTime next;
  next.copy_begin_seconds = slot_in_use ? total_.seconds - next_copy_seconds : ran.compute_begin_seconds;
  next.copy_seconds = next_copy_seconds;
  next.is_sliced = is_sliced;
  splits_->push_back(next);
}

void Timeline::add_outputs(double n_bytes, double seconds) {
  outputs_seconds_ += seconds;
  total_.activation_bytes += n_bytes;
}

void Timeline::add_inputs(double n_bytes, double seconds) {
  inputs_seconds_ += seconds;
  total_.activation_bytes += n_bytes;
}

void Timeline::add(const Segment& segment) {
  // A lane has one slot, so weights behind weights on the same lane wait for their own split.
  const bool slot_taken = is_streamed(segment.backend) && streams(current_) && streams(segment);
  if (n_splits_ > 0 && segment.backend == current_.backend && !slot_taken) {
    join(current_, segment);
    return;
  }
  if (n_splits_ == 0) {
    // Nothing computes before the first split, so nothing hides its copies.
    previous_ = Segment::on(segment.backend);
  } else {
    run(previous_, current_);
    previous_ = current_;
  }
  current_ = segment;
  ++n_splits_;
}

PassTime Timeline::finish() {
  if (n_splits_ > 0) {
    run(previous_, current_);
    run(current_, Segment::on(current_.backend));
    if (splits_ != nullptr) splits_->pop_back();  // behind the last there is none
  }
  charge(Lane::up, inputs_seconds_);
  charge(Lane::down, outputs_seconds_);
  total_.busy_seconds[index(Lane::up)] += inputs_seconds_;
  total_.busy_seconds[index(Lane::down)] += outputs_seconds_;
  total_.n_splits = n_splits_;
  // Copies carry the spread of the link, of several the largest, for the part of the time that they decide.
  const double up = total_.critical_seconds[index(Lane::up)];
  const double down = total_.critical_seconds[index(Lane::down)];
  total_.spread_seconds = std::min(total_.spread_seconds, total_.seconds);
  double up_spread = 0.0;
  double down_spread = 0.0;
  for (const Machine& machine : machines_) {
    up_spread = std::max(up_spread, machine.up.spread);
    down_spread = std::max(down_spread, machine.down.spread);
    if (up > 0.0) total_.basis = std::max(total_.basis, machine.up.basis);
    if (down > 0.0) total_.basis = std::max(total_.basis, machine.down.basis);
  }
  total_.spread_seconds += up * up_spread + down * down_spread;
  return total_;
}

}  // namespace pshard
