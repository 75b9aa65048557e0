// The timeline of one forward pass: splits in order on the lanes of a machine.
//
// A split is a maximal run of operations on one backend. Splits run one after the other; while split i computes, the weights (and KV) of
// split i+1 may be copied, one split ahead and no further, because each lane has one slot. So a pass costs
//
//   sum over splits of  hand-off + activations in + copies that cannot be hidden + max(compute + write-back, copy for the next split)
//
// with two refinements: under a CPU split both the CPU and the copy slow down (contention measured by the profile), and CPU reads and
// copies up share the host's DRAM, whose bandwidth nothing may exceed. Every term falls when a rate rises, so a faster machine is never
// slower.
//
// Source of the structure: predictor of the llama.cpp planner pull request (#22691) with the corrections its author lists later.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cost/machines.hpp"
#include "cost/op_cost.hpp"
#include "model/placement.hpp"

namespace pshard {

enum class Lane : uint8_t { gpu, cpu, up, down, host_memory, handoff };
inline constexpr int kLaneCount = 6;

// Part of a split: what one layer contributes to a run on one backend. Copies are in bytes and seconds, so that both are summed once.
struct Segment {
  Where backend = Where::cpu;
  Cost compute;
  double dram_bytes = 0.0;  // host memory that a CPU segment reads

  // Copies up that one split before can hide.
  double prefetch_bytes = 0.0;
  double prefetch_seconds = 0.0;
  // Routed experts, streamed. Whole tensors can be prefetched; where the routing is already known when the split begins, only the chosen
  // slices need to be copied, but then nothing hides them.
  double experts_whole_bytes = 0.0;
  double experts_whole_seconds = 0.0;
  double experts_sliced_bytes = 0.0;
  double experts_sliced_seconds = 0.0;
  bool experts_can_slice = true;
  // Copies up that nothing hides: op-offload.
  double exposed_bytes = 0.0;
  double exposed_seconds = 0.0;

  double write_back_bytes = 0.0;  // KV or state of a streamed layer, down after the split
  double write_back_seconds = 0.0;
  double activation_up_bytes = 0.0;
  double activation_up_seconds = 0.0;
  double activation_down_bytes = 0.0;
  double activation_down_seconds = 0.0;

  [[nodiscard]] static Segment on(Where backend) {
    Segment segment;
    segment.backend = backend;
    return segment;
  }
};

struct PassTime {
  double seconds = 0.0;
  double spread_seconds = 0.0;
  Basis basis = Basis::measured;
  std::array<double, kLaneCount> busy_seconds{};      // work of each lane, hidden or not
  std::array<double, kLaneCount> critical_seconds{};  // the part of `seconds` that each lane decides; sums to `seconds`
  int64_t n_splits = 0;
  double weights_up_bytes = 0.0;
  double activation_bytes = 0.0;
  double write_back_bytes = 0.0;

  // The lane that decides most of the time; ties go to the first.
  [[nodiscard]] Lane bottleneck() const;
};

// One split of a pass as it was priced; seconds from the start of the pass.
struct SplitTime {
  Where backend = Where::cpu;
  double begin_seconds = 0.0;          // when the split before has ended
  double compute_begin_seconds = 0.0;  // behind activations and copies that nothing hides
  double compute_seconds = 0.0;        // without waiting for anything
  double end_seconds = 0.0;            // when the next split may begin
  double copy_begin_seconds = 0.0;     // of its weights and cache, ahead
  double copy_seconds = 0.0;
  double exposed_seconds = 0.0;     // of copies that nothing hides, the last thing before it computes
  double write_back_seconds = 0.0;  // of its cache, from the end of its computing on
  bool is_sliced = false;           // of its streamed experts, only those that are used are copied, once the routing is known
};

class Timeline {
 public:
  // `unlocked_seconds_per_byte` is what a copied byte costs more than the link curve says, because not all host weights are page-locked.
  explicit Timeline(const Machines& machines, double unlocked_seconds_per_byte = 0.0)
      : machines_(machines), unlocked_seconds_per_byte_(unlocked_seconds_per_byte) {}

  // Appends a segment; it joins the current split where the backend is the same.
  void add(const Segment& segment);
  // Graph inputs (masks, positions) go up once per pass, before anything computes on the GPU.
  void add_inputs(double n_bytes, double seconds);
  // The result (logits) goes down once per pass, after all else.
  void add_outputs(double n_bytes, double seconds);
  // Closes the last split. The object is spent.
  [[nodiscard]] PassTime finish();
  // From now on each split is noted in `splits`.
  void record(std::vector<SplitTime>& splits) { splits_ = &splits; }

 private:
  struct Overlap {
    double seconds;
    Lane winner;
  };
  // Seconds while `split` computes and `copy_seconds` of copies run for the next one.
  [[nodiscard]] Overlap overlap(const Segment& split, double copy_seconds, double copy_bytes) const;
  // Runs `split`; `next` is complete, so its copies are known.
  void run(const Segment& split, const Segment& next);
  void charge(Lane lane, double seconds);
  void note(const SplitTime& ran, bool slot_in_use, double next_copy_seconds, bool is_sliced);
  // A copy of weights that nothing hides: limited by the link, or by the host memory that it reads.
  void charge_exposed(double n_bytes, double seconds);

  Machines machines_;
  double unlocked_seconds_per_byte_;
  Segment previous_;  // complete, not yet run: what it hides depends on the split behind it
  Segment current_;   // still growing
  int64_t n_splits_ = 0;
  double inputs_seconds_ = 0.0;
  double outputs_seconds_ = 0.0;
  std::vector<SplitTime>* splits_ = nullptr;
  PassTime total_;
};

}  // namespace pshard
