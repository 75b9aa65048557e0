#include "cost/timeline.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace pshard {
namespace {

// Seconds and bytes of whole numbers: hand-offs of 0.1 (to the GPU) and 0.2 (to the CPU), 0.01 for an event between lanes, 100 bytes/s of
// host memory, no contention, two copy engines.
Machine machine() {
  Machine m;
  m.has_gpu = true;
  m.gpu.op_seconds = 0.01;
  m.handoff_to_gpu_seconds = 0.1;
  m.handoff_to_cpu_seconds = 0.2;
  m.host_bytes_per_second = 100.0;
  m.copy_engines = 2;
  m.up = {{1.0}, {100.0}, 0.0, 100.0, Basis::measured, 0.5};
  m.down = m.up;
  return m;
}

struct Parts {
  double compute = 0.0;
  double prefetch = 0.0;
  double exposed = 0.0;
  double write_back = 0.0;
};

// Copies without bytes, so that host memory does not limit them.
Segment segment(Where backend, Parts parts) {
  Segment s = Segment::on(backend);
  s.compute.seconds = parts.compute;
  s.prefetch_seconds = parts.prefetch;
  s.exposed_seconds = parts.exposed;
  s.write_back_seconds = parts.write_back;
  return s;
}

Segment pinned(double compute) { return segment(Where::pinned, {.compute = compute}); }
Segment cpu(double compute) { return segment(Where::cpu, {.compute = compute}); }

PassTime time_of(const std::vector<Segment>& segments, const Machine& m = machine(), double unlocked = 0.0) {
  Timeline timeline(m, unlocked);
  for (const Segment& s : segments) timeline.add(s);
  const PassTime time = timeline.finish();
  EXPECT_NEAR(std::accumulate(time.critical_seconds.begin(), time.critical_seconds.end(), 0.0), time.seconds, 1e-12);
  return time;
}

double seconds(const std::vector<Segment>& segments, const Machine& m = machine()) { return time_of(segments, m).seconds; }

double critical(const PassTime& time, Lane lane) { return time.critical_seconds[static_cast<size_t>(lane)]; }
double busy(const PassTime& time, Lane lane) { return time.busy_seconds[static_cast<size_t>(lane)]; }

TEST(Timeline, AnEmptyPassTakesNoTime) { EXPECT_DOUBLE_EQ(seconds({}), 0.0); }

TEST(Timeline, SplitsRunOneAfterTheOther) {
  // 3 + 0.2 to the CPU + 4 + 0.1 to the GPU + 5
  const PassTime time = time_of({pinned(3), cpu(4), pinned(5)});
  EXPECT_NEAR(time.seconds, 12.3, 1e-12);
  EXPECT_EQ(time.n_splits, 3);
  EXPECT_NEAR(critical(time, Lane::gpu), 8.0, 1e-12);
  EXPECT_NEAR(critical(time, Lane::cpu), 4.0, 1e-12);
  EXPECT_NEAR(critical(time, Lane::handoff), 0.3, 1e-12);
  EXPECT_EQ(time.bottleneck(), Lane::gpu);
}

TEST(Timeline, SegmentsOnOneBackendAreOneSplit) {
  const PassTime time = time_of({pinned(3), pinned(4), cpu(1), cpu(2)});
  EXPECT_NEAR(time.seconds, 7.0 + 0.2 + 3.0, 1e-12);
  EXPECT_EQ(time.n_splits, 2);
}

TEST(Timeline, ACopyHidesUnderTheSplitBefore) {
  EXPECT_NEAR(seconds({pinned(5), segment(Where::stream_a, {.compute = 1, .prefetch = 4})}), 5.0 + 0.01 + 1.0, 1e-12);
  const PassTime time = time_of({pinned(3), segment(Where::stream_a, {.compute = 1, .prefetch = 4})});
  EXPECT_NEAR(time.seconds, 4.0 + 0.01 + 1.0, 1e-12);
  EXPECT_NEAR(critical(time, Lane::up), 4.0, 1e-12);
  EXPECT_NEAR(busy(time, Lane::gpu), 4.01, 1e-12);  // its work is there, hidden
}

TEST(Timeline, ACopyDoesNotReachBehindTheSplitBefore) {
  // The 10 s of the first split cannot hide any of the 8 s that the third waits for: 10 + max(1, 8) + 1, and two events.
  EXPECT_NEAR(seconds({pinned(10), segment(Where::stream_a, {.compute = 1, .prefetch = 2}),
                       segment(Where::stream_b, {.compute = 1, .prefetch = 8})}),
              19.02, 1e-12);
}

TEST(Timeline, NothingHidesTheCopyOfTheFirstSplit) {
  EXPECT_NEAR(seconds({segment(Where::stream_a, {.compute = 1, .prefetch = 5})}), 6.0, 1e-12);
}

TEST(Timeline, TwoLanesTakeTurns) {
  // 2 exposed, then twice max(3, 2) with an event, then 3.
  const Segment a = segment(Where::stream_a, {.compute = 3, .prefetch = 2});
  const Segment b = segment(Where::stream_b, {.compute = 3, .prefetch = 2});
  EXPECT_NEAR(seconds({a, b, a}), 11.02, 1e-12);
}

TEST(Timeline, OneLaneHasOneSlot) {
  // The second copy of a lane waits until the first split has computed: max(1, 2) + 3, then 2 + 3.
  Segment a = segment(Where::stream_a, {.compute = 3, .prefetch = 2});
  a.prefetch_bytes = 1;
  const PassTime time = time_of({pinned(1), a, a});
  EXPECT_NEAR(time.seconds, 2.0 + 0.01 + 3.0 + 2.0 + 3.0, 1e-12);
  EXPECT_EQ(time.n_splits, 3);
  // Work without copies of its own joins the split before it.
  EXPECT_EQ(time_of({a, segment(Where::stream_a, {.compute = 1})}).n_splits, 1);
}

TEST(Timeline, NothingHidesOpOffload) {
  EXPECT_NEAR(seconds({pinned(10), segment(Where::stream_a, {.compute = 1, .exposed = 4})}), 10.0 + 0.01 + 4.0 + 1.0, 1e-12);
}

TEST(Timeline, ActivationsAreNotHidden) {
  Segment there = cpu(1);
  there.activation_down_seconds = 0.5;
  Segment back = pinned(1);
  back.activation_up_seconds = 0.25;
  const PassTime time = time_of({pinned(4), there, back});
  EXPECT_NEAR(time.seconds, 6.0 + 0.3 + 0.75, 1e-12);
  EXPECT_NEAR(critical(time, Lane::down), 0.5, 1e-12);
  EXPECT_NEAR(critical(time, Lane::up), 0.25, 1e-12);
}

TEST(Timeline, OneCopyEngineTakesBothDirectionsInTurn) {
  // The first split computes 3 and writes back 2 while 4 are copied for the second.
  const std::vector<Segment> segments{segment(Where::pinned, {.compute = 3, .write_back = 2}),
                                      segment(Where::stream_a, {.compute = 1, .prefetch = 4})};
  Machine m = machine();
  EXPECT_NEAR(seconds(segments, m), 5.0 + 0.01 + 1.0, 1e-12);  // max(3 + 2, 4)
  m.copy_engines = 1;
  EXPECT_NEAR(seconds(segments, m), 6.0 + 0.01 + 1.0, 1e-12);  // max(3 + 2, 4 + 2)
  EXPECT_NEAR(critical(time_of({segments[0]}, m), Lane::down), 2.0, 1e-12);
}

TEST(Timeline, CpuAndCopySlowEachOtherDown) {
  Machine m = machine();
  m.cpu_rate_under_copy = 0.8;
  m.copy_rate_under_cpu = 0.5;
  // 4 s of work beside 2 s of copy: the copy needs 4 s at half its rate, in which 3.2 s of work are done; 0.8 s remain.
  EXPECT_NEAR(seconds({cpu(4), segment(Where::stream_a, {.prefetch = 2})}, m), 4.8 + 0.1, 1e-12);
  // 2 s of work beside 4 s of copy: the work needs 2.5 s, in which 1.25 s of copy are done; 2.75 s remain.
  EXPECT_NEAR(seconds({cpu(2), segment(Where::stream_a, {.prefetch = 4})}, m), 5.25 + 0.1, 1e-12);
  // Where both would crawl, one after the other is as fast.
  m.cpu_rate_under_copy = m.copy_rate_under_cpu = 0.2;
  EXPECT_NEAR(seconds({cpu(1), segment(Where::stream_a, {.prefetch = 1})}, m), 2.0 + 0.1, 1e-12);
}

TEST(Timeline, HostMemoryCarriesCpuReadsAndCopiesTogether) {
  Segment work = cpu(4);
  work.dram_bytes = 350;
  Segment streamed = segment(Where::stream_a, {.prefetch = 2});
  streamed.prefetch_bytes = 250;
  // Side by side 4 s, but 350 + 250 bytes need 6 s.
  const PassTime time = time_of({work, streamed});
  EXPECT_NEAR(time.seconds, 6.0 + 0.1, 1e-12);
  EXPECT_EQ(time.bottleneck(), Lane::host_memory);
  EXPECT_NEAR(busy(time, Lane::host_memory), 6.0, 1e-12);
}

TEST(Timeline, NoCopyIsFasterThanHostMemory) {
  Segment streamed = segment(Where::stream_a, {.prefetch = 2});
  streamed.prefetch_bytes = 300;
  EXPECT_NEAR(seconds({pinned(1), streamed}), 3.0 + 0.01, 1e-12);
  Segment offloaded = segment(Where::pinned, {.exposed = 2});
  offloaded.exposed_bytes = 300;
  const PassTime time = time_of({offloaded});
  EXPECT_NEAR(time.seconds, 3.0, 1e-12);
  EXPECT_EQ(time.bottleneck(), Lane::host_memory);
}

Segment experts(bool can_slice) {
  Segment s = segment(Where::stream_a, {.compute = 1});
  s.experts_whole_seconds = 6;
  s.experts_whole_bytes = 60;
  s.experts_sliced_seconds = 2;
  s.experts_sliced_bytes = 20;
  s.experts_can_slice = can_slice;
  return s;
}

TEST(Timeline, ExpertsComeInSlicesWhereThatIsFaster) {
  // Whole under 1 s: 6. Slices, which nothing hides: 1 + 2.
  const PassTime time = time_of({pinned(1), experts(true)});
  EXPECT_NEAR(time.seconds, 3.0 + 0.01 + 1.0, 1e-12);
  EXPECT_DOUBLE_EQ(time.weights_up_bytes, 20.0);
}

TEST(Timeline, ExpertsComeWholeWhereTheCopyHides) {
  const PassTime time = time_of({pinned(7), experts(true)});
  EXPECT_NEAR(time.seconds, 7.0 + 0.01 + 1.0, 1e-12);
  EXPECT_DOUBLE_EQ(time.weights_up_bytes, 60.0);
}

TEST(Timeline, ExpertsComeWholeWhereTheRoutingIsNotKnown) {
  EXPECT_NEAR(seconds({pinned(1), experts(false)}), 6.0 + 0.01 + 1.0,
              1e-12);  // Experts that join work of their own lane are routed inside the split.
  EXPECT_NEAR(seconds({pinned(1), segment(Where::stream_a, {.compute = 2}), experts(true)}), 6.0 + 0.01 + 3.0, 1e-12);
}

TEST(Timeline, MemoryThatIsNotPageLockedAddsToEveryWeightByte) {
  Segment streamed = segment(Where::stream_a, {.prefetch = 2, .exposed = 1});
  streamed.prefetch_bytes = 40;
  streamed.exposed_bytes = 10;
  EXPECT_NEAR(time_of({streamed}, machine(), 0.1).seconds, 2 + 4 + 1 + 1, 1e-12);
}

TEST(Timeline, GraphInputsGoUpOncePerPass) {
  const Machine m = machine();
  Timeline timeline(m);
  timeline.add_inputs(7.0, 0.5);
  timeline.add(pinned(3));
  const PassTime time = timeline.finish();
  EXPECT_NEAR(time.seconds, 3.5, 1e-12);
  EXPECT_DOUBLE_EQ(time.activation_bytes, 7.0);
}

TEST(Timeline, ALinkThatDecidesBringsItsSpreadAndBasis) {
  Machine m = machine();
  m.up.basis = Basis::reference;
  PassTime time = time_of({pinned(3), segment(Where::stream_a, {.prefetch = 4})}, m);
  EXPECT_NEAR(time.spread_seconds, 4 * 0.5, 1e-12);
  EXPECT_EQ(time.basis, Basis::reference);
  time = time_of({pinned(5), segment(Where::stream_a, {.prefetch = 4})}, m);
  EXPECT_NEAR(time.spread_seconds, 0.0, 1e-12);
  EXPECT_EQ(time.basis, Basis::measured);
}

TEST(Timeline, CountsBytesByWhatTheyAre) {
  Segment s = segment(Where::stream_a, {.compute = 1});
  s.prefetch_bytes = 1;
  s.exposed_bytes = 2;
  s.write_back_bytes = 4;
  s.activation_up_bytes = 8;
  s.activation_down_bytes = 16;
  const PassTime time = time_of({s, cpu(1)});
  EXPECT_DOUBLE_EQ(time.weights_up_bytes, 3.0);
  EXPECT_DOUBLE_EQ(time.write_back_bytes, 4.0);
  EXPECT_DOUBLE_EQ(time.activation_bytes, 24.0);
}

}  // namespace
}  // namespace pshard
