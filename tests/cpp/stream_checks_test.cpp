// Checking mode sees what goes wrong on the way. What goes wrong is done by a backend that passes everything on to the real one but one
// wait, one copy or one product: nothing in the executor knows of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <utility>

#include "stream/checks.hpp"
#include "stream/checksum.hpp"
#include "stream_cases.hpp"

namespace pshard {
namespace {

using namespace stream_cases;

const Queue kCompute{gpu_device(0), Stream::compute};
const Queue kLanes[] = {{gpu_device(0), Stream::lane_a}, {gpu_device(0), Stream::lane_b}};

bool is_lane(Queue queue) { return queue.stream == Stream::lane_a || queue.stream == Stream::lane_b; }
bool is_compute(Queue queue) { return is_gpu(queue.device) && queue.stream == Stream::compute; }

// Does everything right until it is told to break.
class Breakable : public HostBackend {
 public:
  Breakable() : HostBackend(backend_options()) {}
  std::atomic<bool> breaks{false};

 protected:
  // Keeps a queue from going on until `gate` opens, so that what happens first does not depend on the machine.
  void hold(Queue queue) {
    HostBackend::inspect(queue, nullptr, 0, [this](const uint8_t*) {
      while (!gate.load()) std::this_thread::yield();
    });
  }
  void open_gate_after(Queue queue) {
    const Event last = HostBackend::record(queue);
    while (!HostBackend::has_come(last)) std::this_thread::yield();
  }
  std::atomic<bool> gate{false};
};

// The error of one pass of two lanes that take turns; afterwards the same executor must run without one.
template <typename Broken>
std::string error_of_broken_pass(bool with_experts = false) {
  const Model m = model(6, with_experts);
  const std::vector<LayerPlacement> lanes{LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  std::vector<Schedule> schedules{schedule(m, placement(m, lanes, Where::cpu), 3)};
  const GeneratedWeights source(schedules, 1, 1);
  Broken backend;
  Executor executor(backend, source, schedules, checking());
  executor.run(0);
  backend.breaks = true;
  std::string error;
  try {
    executor.run(0);
  } catch (const StreamError& caught) {
    error = caught.what();
  }
  backend.breaks = false;
  EXPECT_GT(executor.run(0).n_checked, 0);
  return error;
}

// The event of a lane comes, its copies do not.
class EventBeforeItsCopies : public Breakable {
 public:
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    if (!(breaks && is_lane(queue))) HostBackend::copy(queue, to, from, n_bytes);
  }
};

TEST(StreamChecks, SeeALaneThatIsUsedBeforeItsCopiesHaveCome) {
  const std::string error = error_of_broken_pass<EventBeforeItsCopies>();
  EXPECT_NE(error.find("are not those of its source"), std::string::npos) << error;
  EXPECT_NE(error.find("blk."), std::string::npos) << error;
}

// The compute stream does not wait for lanes, and the lanes are late.
class MissingWait : public Breakable {
 public:
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    if (breaks && is_lane(queue)) hold(queue);
    HostBackend::copy(queue, to, from, n_bytes);
  }
  Event record(Queue queue) override {
    const Event event = HostBackend::record(queue);
    if (is_lane(queue)) of_lanes_.push_back(event);
    return event;
  }
  void wait(Queue queue, Event event) override {
    const bool of_lane = std::find(of_lanes_.begin(), of_lanes_.end(), event) != of_lanes_.end();
    if (!(breaks && is_compute(queue) && of_lane)) HostBackend::wait(queue, event);
  }
  void forget_events() override {
    of_lanes_.clear();
    HostBackend::forget_events();
  }
  void finish(const std::function<void()>& poll) override {
    if (breaks) open_gate_after(kCompute);
    gate = true;
    HostBackend::finish(poll);
    gate = false;
  }

 private:
  std::vector<Event> of_lanes_;
};

TEST(StreamChecks, SeeAMissingWait) {
  const std::string error = error_of_broken_pass<MissingWait>();
  EXPECT_NE(error.find("are not those of its source"), std::string::npos) << error;
}

// Lanes do not wait for the splits that still use their slots, and the splits take their time once they have begun.
class OverwritesTheSlot : public Breakable {
 public:
  void wait(Queue queue, Event event) override {
    if (!(breaks && is_lane(queue))) HostBackend::wait(queue, event);
  }
  void multiply(Queue queue, const Product& product) override {
    if (breaks && is_compute(queue)) hold(queue);
    HostBackend::multiply(queue, product);
  }
  void finish(const std::function<void()>& poll) override {
    if (breaks) {
      for (const Queue lane : kLanes) open_gate_after(lane);
    }
    gate = true;
    HostBackend::finish(poll);
    gate = false;
  }
};

TEST(StreamChecks, SeeAShardThatIsOverwrittenWhileItIsInUse) {
  const std::string error = error_of_broken_pass<OverwritesTheSlot>();
  EXPECT_TRUE(error.find("are not those of its source") != std::string::npos || error.find("should be") != std::string::npos) << error;
}

class FlipsABit : public Breakable {
 public:
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    HostBackend::copy(queue, to, from, n_bytes);
    if (breaks && is_lane(queue)) HostBackend::inspect(queue, to, n_bytes, [=](const uint8_t*) { to[n_bytes / 2] ^= 1; });
  }
};

TEST(StreamChecks, SeeASingleBit) { EXPECT_NE(error_of_broken_pass<FlipsABit>().find("are not those of its source"), std::string::npos); }

class MultipliesAnotherRow : public Breakable {
 public:
  void multiply(Queue queue, const Product& product) override {
    Product other = product;
    if (breaks && is_compute(queue) && product.n > 128) {
      other.weights += row_bytes(product.type, product.k);
      other.n -= 1;
    }
    HostBackend::multiply(queue, other);
  }
};

TEST(StreamChecks, SeeAProductOfOtherWeights) {
  EXPECT_NE(error_of_broken_pass<MultipliesAnotherRow>().find("should be"), std::string::npos);
  EXPECT_NE(error_of_broken_pass<MultipliesAnotherRow>(true).find("should be"), std::string::npos);
}

// In checking mode activations are spoiled before they come: what comes second to the same place is lost.
class LosesActivations : public Breakable {
 public:
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    const std::pair place{to, n_bytes};
    const bool is_lost = breaks && is_compute(queue) && place == last_;
    if (is_compute(queue)) last_ = place;
    if (!is_lost) HostBackend::copy(queue, to, from, n_bytes);
  }

 private:
  std::pair<uint8_t*, int64_t> last_{nullptr, 0};
};

TEST(StreamChecks, SeeActivationsThatDoNotCome) {
  const std::string error = error_of_broken_pass<LosesActivations>();
  EXPECT_NE(error.find("should be"), std::string::npos) << error;
}

// A device that fails in mid-pass: the pass ends with its words, and the next one runs.
class FailsInMidPass : public Breakable {
 public:
  void multiply(Queue queue, const Product& product) override {
    if (breaks && is_compute(queue) && ++n_ == 20) {
      HostBackend::inspect(queue, nullptr, 0, [](const uint8_t*) { throw StreamError("the device fell off the bus"); });
    }
    HostBackend::multiply(queue, product);
  }

 private:
  int n_ = 0;
};

TEST(StreamChecks, ADeviceErrorEndsThePassAndNothingElse) {
  EXPECT_EQ(error_of_broken_pass<FailsInMidPass>(), "the device fell off the bus");
}

// The n-th copy cannot be queued, while a lane still works, and fails, on what was queued before.
class RefusesACopy : public Breakable {
 public:
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    if (breaks && ++n_ == refused) {
      HostBackend::inspect(kLanes[0], nullptr, 0, [this](const uint8_t*) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        has_ended = true;
        throw StreamError("a consequence");
      });
      throw StreamError("copy refused");
    }
    HostBackend::copy(queue, to, from, n_bytes);
  }
  int refused = 0;
  std::atomic<bool> has_ended{false};

 private:
  int n_ = 0;
};

// While the backend breaks, what was refused is what is reported, and nothing runs any more.
void expect_refused(RefusesACopy& backend, const std::function<void()>& queue) {
  backend.breaks = true;
  std::string error;
  try {
    queue();
  } catch (const StreamError& caught) {
    error = caught.what();
  }
  EXPECT_TRUE(backend.has_ended) << backend.refused;
  EXPECT_EQ(error, "copy refused") << backend.refused;
  backend.breaks = false;
}

TEST(StreamChecks, AnErrorWhileQueueingALoadIsTheOneReportedAndLeavesNothingRunning) {
  const Model m = model(3);
  std::vector<Schedule> schedules{schedule(m, placement(m, {LayerPlacement::uniform(Where::pinned)}, Where::pinned), 3)};
  const GeneratedWeights source(schedules, 1, 1);
  for (const int refused : {1, 2, 5, 12, 25}) {  // activations, the first weights, the last, caches
    RefusesACopy backend;
    backend.refused = refused;
    Executor executor(backend, source, schedules, checking());
    expect_refused(backend, [&] { executor.load(0); });
    EXPECT_GT(executor.load(0).up_bytes, 0);
    EXPECT_GT(executor.run(0).n_checked, 0);
  }
}

TEST(StreamChecks, AnErrorWhileQueueingAPassIsTheOneReportedAndLeavesNothingRunning) {
  const Model m = model(3);
  const std::vector<LayerPlacement> lanes{LayerPlacement::uniform(Where::stream_a), LayerPlacement::uniform(Where::stream_b)};
  std::vector<Schedule> schedules{schedule(m, placement(m, lanes, Where::cpu), 3)};
  const GeneratedWeights source(schedules, 1, 1);
  for (const int refused : {1, 4, 12, 25}) {
    RefusesACopy backend;
    backend.refused = refused;
    Executor executor(backend, source, schedules, checking());
    executor.run(0);
    expect_refused(backend, [&] { executor.run(0); });
    EXPECT_GT(executor.run(0).n_checked, 0);
  }
}

// Every wait is there: whichever queue is late, what it works on is neither missing nor written over, in an arena without a byte to spare.
class IsLate : public HostBackend {
 public:
  explicit IsLate(Stream late, int64_t arena_bytes) : HostBackend(backend_options(1, arena_bytes)), late_(late) {}
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    delay(queue);
    HostBackend::copy(queue, to, from, n_bytes);
  }
  void multiply(Queue queue, const Product& product) override {
    delay(queue);
    HostBackend::multiply(queue, product);
  }

 private:
  void delay(Queue queue) {
    if (!is_gpu(queue.device) || queue.stream != late_) return;
    HostBackend::inspect(queue, nullptr, 0, [](const uint8_t*) { std::this_thread::sleep_for(std::chrono::microseconds(300)); });
  }
  Stream late_;
};

int64_t least_arena(const std::vector<Schedule>& schedules) {
  const auto taken = [&](int64_t limit) { return lay_out(schedules, {{limit}}, Scratch())[0].devices[index(gpu_device(0))].n_bytes; };
  int64_t needed = taken(int64_t{64} << 20);
  for (const int64_t step : {1 << 16, 1 << 12, 1 << 7}) {
    while (taken(needed - step) <= needed - step) needed -= step;
  }
  return needed;
}

class OneQueueIsLate : public testing::TestWithParam<Stream> {};

TEST_P(OneQueueIsLate, AndNothingIsMissingOrWrittenOver) {
  const auto uniform = [](Where where) { return LayerPlacement::uniform(where); };
  const std::vector<std::vector<LayerPlacement>> placements{
      all_kinds(),
      {uniform(Where::stream_a)},                             // one lane for all
      {uniform(Where::stream_a), uniform(Where::stream_b)},   // two in turn
      {with_ffn(uniform(Where::pinned), Where::stream_a)},    // parts of layers
      {with_ffn(uniform(Where::stream_b), Where::stream_a)},  //
  };
  const Model m = model(4);
  for (size_t i = 0; i < placements.size(); ++i) {
    for (const bool op_offload : {false, true}) {
      Placement where = placement(m, placements[i], Where::cpu);
      where.op_offload = op_offload;
      const std::vector<Schedule> schedules{schedule(m, where, 3)};
      const GeneratedWeights source(schedules, 1, 1);
      ExecutorOptions options = checking();
      options.vram_bytes = {{least_arena(schedules)}};
      IsLate backend(GetParam(), options.vram_bytes[0][0]);
      Executor executor(backend, source, schedules, options);
      for (int pass = 0; pass < 2; ++pass) EXPECT_GT(executor.run(0).n_checked, 20) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(StreamChecks, OneQueueIsLate, testing::Values(Stream::compute, Stream::lane_a, Stream::lane_b, Stream::down));

TEST(Checksum, TellsAnyWordAndAnyPlace) {
  std::vector<uint8_t> bytes(1000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
  const auto n = static_cast<int64_t>(bytes.size());
  const uint64_t sum = checksum(bytes.data(), n);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= 0x10;
    EXPECT_NE(checksum(bytes.data(), n), sum) << i;
    bytes[i] ^= 0x10;
  }
  std::vector<uint8_t> swapped = bytes;
  std::swap_ranges(swapped.begin(), swapped.begin() + 32, swapped.begin() + 32);
  EXPECT_NE(checksum(swapped.data(), n), sum);
  EXPECT_NE(checksum(bytes.data(), n - 1), sum);
  EXPECT_EQ(checksum(bytes.data(), n), sum);
}

}  // namespace
}  // namespace pshard
