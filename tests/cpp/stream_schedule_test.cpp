#include <gtest/gtest.h>

#include <numeric>

#include "cost/pass_cost.hpp"
#include "plan/strategy.hpp"
#include "planning_cases.hpp"
#include "stream/schedule.hpp"
#include "stream_cases.hpp"

namespace pshard {
namespace {

using stream_cases::all_kinds;
using stream_cases::cache_bytes;
using stream_cases::model;
using stream_cases::pass;
using stream_cases::placement;

Machine any_machine() {
  Machine machine = cases::machine();
  for (const int type : {0, 1, 8, 12, 14}) {
    for (Processor* processor : {&machine.gpu, &machine.cpu}) {
      processor->mul_mat[static_cast<size_t>(type)] = {{1.0}, {1e12}, Basis::measured, 0.0};
      processor->mul_mat_id[static_cast<size_t>(type)] = {{1.0}, {1e12}, Basis::measured, 0.0};
    }
  }
  return machine;
}

int64_t weight_bytes_up(const Schedule& schedule) {
  int64_t bytes = 0;
  for (const Split& split : schedule.splits) {
    for (const auto* tensors : {&split.streamed, &split.streamed_experts, &split.offloaded}) {
      for (const int32_t tensor : *tensors) bytes += schedule.tensors[static_cast<size_t>(tensor)].n_bytes;
    }
    for (const CachePart& part : split.cache_up) bytes += part.n_bytes;
    if (is_gpu(split.device)) {
      for (const CachePart& part : split.cache_fetched) bytes += part.n_bytes;
    }
  }
  return bytes;
}

// What is executed is what is priced: as many splits, the same bytes.
void expect_priced(const Model& m, const Placement& where, int64_t n_tokens) {
  const Pass p = pass(n_tokens);
  const Schedule schedule = make_schedule(m, where, p, cache_bytes(m));
  const Machine machine = any_machine();
  std::vector<SplitTime> splits;
  const PassTime time = PassCost(m, machine, p).price(where, &splits);
  ASSERT_EQ(static_cast<int64_t>(schedule.splits.size()), time.n_splits);
  ASSERT_EQ(splits.size(), schedule.splits.size());
  int64_t values = schedule.input_bytes + schedule.output_bytes;
  int64_t down = 0;
  bool slices = false;
  for (size_t i = 0; i < splits.size(); ++i) {
    const Split& split = schedule.splits[i];
    EXPECT_EQ(split.lane, splits[i].backend);
    slices = slices || splits[i].is_sliced || !split.offloaded_experts.empty();
    for (const ValueMove& value : split.values) {
      values += (is_gpu(value.from) && is_gpu(value.to) ? 2 : 1) * value.n_bytes;  // through the host
    }
    for (const CachePart& part : split.cache_down) down += part.n_bytes;
    if (!is_gpu(split.device)) {
      for (const CachePart& part : split.cache_fetched) values += part.n_bytes;
    }
  }
  if (!slices) {
    EXPECT_DOUBLE_EQ(static_cast<double>(weight_bytes_up(schedule)), time.weights_up_bytes);
  }
  EXPECT_DOUBLE_EQ(static_cast<double>(values), time.activation_bytes);
  EXPECT_DOUBLE_EQ(static_cast<double>(down), time.write_back_bytes);
}

TEST(StreamSchedule, HasTheSplitsAndBytesThatArePriced) {
  for (const bool with_experts : {false, true}) {
    const Model m = model(7, with_experts);
    for (const int64_t n_tokens : {1, 40}) {
      for (const Where head : {Where::pinned, Where::cpu}) {
        for (const bool op_offload : {false, true}) {
          Placement where = placement(m, all_kinds(), head);
          where.op_offload = op_offload;
          expect_priced(m, where, n_tokens);
        }
      }
      for (const Strategy strategy : kPullRequestStrategies) {
        for (const Knobs& knobs : all_knobs(strategy, m)) expect_priced(m, make_placement(strategy, knobs, m), n_tokens);
      }
    }
  }
}

// Single tensors that are not where the rest of their group is, as llama.cpp's overrides put them.
Placement with_exceptions(const Model& m) {
  Placement where = placement(m, all_kinds(), Where::pinned);
  where.exceptions = {{"blk.0.ffn_up.weight", Where::cpu},
                      {"blk.1.attn_q.weight", Where::pinned},
                      {"blk.2.ffn_down.weight", Where::cpu},
                      {"blk.0.ffn_up_exps.weight", Where::cpu},
                      {"blk.5.attn_output.weight", Where::pinned},
                      {"blk.2.ffn_down_exps.weight", Where::cpu},
                      {"output.weight", Where::cpu}};
  return where;
}

TEST(StreamSchedule, TensorsThatAreApartFromTheirGroupAreWhereTheyAreSaidToBe) {
  for (const bool with_experts : {false, true}) {
    const Model m = model(7, with_experts);
    const Placement where = with_exceptions(m);
    for (const int64_t n_tokens : {1, 40}) {
      for (const bool op_offload : {false, true}) {
        Placement placement = where;
        placement.op_offload = op_offload;
        expect_priced(m, placement, n_tokens);
      }
    }
    const Schedule schedule = make_schedule(m, where, pass(1), cache_bytes(m));
    const auto home = [&](const std::string& name) {
      const auto found =
          std::find_if(schedule.tensors.begin(), schedule.tensors.end(), [&](const StreamTensor& t) { return t.name == name; });
      return found->home;
    };
    EXPECT_EQ(home(with_experts ? "blk.0.ffn_up_exps.weight" : "blk.0.ffn_up.weight"), Device::host);
    EXPECT_EQ(home(with_experts ? "blk.6.ffn_up_exps.weight" : "blk.6.ffn_up.weight"), Device::gpu);  // of the same pattern
    EXPECT_EQ(home("blk.1.attn_q.weight"), Device::gpu);
    EXPECT_EQ(home("blk.1.attn_k.weight"), Device::host);  // streamed
    EXPECT_EQ(home("blk.5.attn_output.weight"), Device::gpu);
    EXPECT_EQ(home("output.weight"), Device::host);
    for (const Split& split : schedule.splits) {
      for (const StreamOperation& work : split.operations) {
        if (work.tensor < 0) continue;
        const std::string& name = schedule.tensors[static_cast<size_t>(work.tensor)].name;
        const auto exception =
            std::find_if(where.exceptions.begin(), where.exceptions.end(), [&](const auto& e) { return e.name == name; });
        if (exception == where.exceptions.end()) continue;
        EXPECT_EQ(split.device, device_of(exception->where)) << name;
      }
    }
  }
}

TEST(StreamSchedule, SeveralDevicesArePriced) {
  const Model m = model(6);
  Placement where = placement(m, {LayerPlacement::uniform(Where::pinned), LayerPlacement::uniform(Where::gpu1)}, Where::gpu1);
  where.layer_pattern = {0, 0, 1, 1, 1, 1};
  where.n_gpu = 2;
  for (const int64_t n_tokens : {1, 40}) expect_priced(m, where, n_tokens);
  const PassTime two = PassCost(m, any_machine(), pass(1)).price(where);
  const PassTime one = PassCost(m, any_machine(), pass(1)).price(placement(m, {LayerPlacement::uniform(Where::pinned)}, Where::pinned));
  EXPECT_GT(two.seconds, one.seconds);  // by what crosses, and a hand-off
  // A norm runs where the layer before has ended, so that its weight is multiplied in a kernel of its own.
  const double norm_seconds = 2.0 * 4.0 * static_cast<double>(m.hyperparameters().n_embd) / any_machine().gpu.memory_bytes_per_second;
  EXPECT_NEAR(two.busy_seconds[static_cast<size_t>(Lane::gpu)], one.busy_seconds[static_cast<size_t>(Lane::gpu)] + norm_seconds, 1e-15);
}

// So many times as fast in all that a GPU and its link do.
Machine scaled(Machine machine, double factor) {
  Processor& gpu = machine.gpu;
  gpu.memory_bytes_per_second *= factor;
  gpu.memory_peak_bytes_per_second *= factor;
  gpu.peak_flop_per_second *= factor;
  for (auto* table : {&gpu.mul_mat, &gpu.mul_mat_id}) {
    for (RateSeries& series : *table) {
      for (double& rate : series.flop_per_second) rate *= factor;
    }
  }
  for (AttentionRates& depth : gpu.attention) {
    for (double& rate : depth.rates.flop_per_second) rate *= factor;
  }
  for (LinkCurve* link : {&machine.up, &machine.down}) {
    for (double& rate : link->bytes_per_second) rate *= factor;
    link->peak_bytes_per_second *= factor;
  }
  machine.handoff_to_gpu_seconds = 1e-3 / factor;
  machine.handoff_to_cpu_seconds = 1e-4 / factor;
  return machine;
}

TEST(StreamSchedule, DevicesThatDifferArePricedEachByItsOwn) {
  const Model m = model(6);
  const auto uniform = [](Where where) { return LayerPlacement::uniform(where); };
  Placement where = placement(m, {uniform(Where::pinned), uniform(Where::gpu1), uniform(Where::cpu)}, Where::gpu1);
  where.layer_pattern = {0, 0, 2, 1, 1, 1};
  where.n_gpu = 2;
  const std::vector<Machine> machines{scaled(any_machine(), 2.0), scaled(any_machine(), 0.5)};
  for (const int64_t n_tokens : {1, 40}) {
    const Pass p = pass(n_tokens);
    std::vector<SplitTime> fast;
    std::vector<SplitTime> slow;
    std::vector<SplitTime> both;
    static_cast<void>(PassCost(m, machines[0], p).price(where, &fast));
    static_cast<void>(PassCost(m, machines[1], p).price(where, &slow));
    const PassTime time = PassCost(m, Machines(machines), p).price(where, &both);
    const Schedule schedule = make_schedule(m, where, p, cache_bytes(m));
    ASSERT_EQ(both.size(), schedule.splits.size());
    double total = 0.0;
    for (size_t i = 0; i < both.size(); ++i) {
      const Split& split = schedule.splits[i];
      const bool is_slow = split.device == gpu_device(1);
      const auto compute = [&](const SplitTime& s) { return s.compute_seconds; };
      EXPECT_DOUBLE_EQ(compute(both[i]), compute(is_slow ? slow[i] : fast[i]));
      if (is_gpu(split.device)) {
        EXPECT_GT(compute(slow[i]), 3.0 * compute(fast[i]));
      }
      total += compute(both[i]);
      // A value goes down the link of the device that it is on, and up that of the one that reads it.
      for (const ValueMove& value : split.values) {
        const auto bytes = static_cast<double>(value.n_bytes);
        if (is_gpu(value.from)) total += bytes / machines[index(value.from) - 1].down.peak_bytes_per_second;
        if (is_gpu(value.to)) total += bytes / machines[index(value.to) - 1].up.peak_bytes_per_second;
      }
      if (i == 0 || schedule.splits[i - 1].device == split.device) continue;
      total += is_gpu(split.device) ? machines[index(split.device) - 1].handoff_to_gpu_seconds
                                    : machines[index(schedule.splits[i - 1].device) - 1].handoff_to_cpu_seconds;
    }
    total += static_cast<double>(schedule.input_bytes) / machines[0].up.peak_bytes_per_second;
    total += static_cast<double>(schedule.output_bytes) / machines[1].down.peak_bytes_per_second;
    EXPECT_NEAR(time.seconds, total, 1e-9 * total);
  }
}

TEST(StreamSchedule, EachGpuNeedsAMachineThatHasOne) {
  const Model m = model(3);
  Placement where = placement(m, {LayerPlacement::uniform(Where::gpu1)}, pinned_on(2));
  where.n_gpu = 3;
  std::vector<Machine> machines(2, any_machine());
  EXPECT_THROW(static_cast<void>(PassCost(m, Machines(machines), pass(1)).price(where)), std::invalid_argument);
  machines.push_back(any_machine());
  EXPECT_DOUBLE_EQ(PassCost(m, Machines(machines), pass(1)).price(where).seconds, PassCost(m, machines[0], pass(1)).price(where).seconds);
  machines.back().has_gpu = false;
  EXPECT_THROW(static_cast<void>(Machines(machines)), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(Machines(std::span<const Machine>())), std::invalid_argument);
}

TEST(StreamSchedule, SecondsOfSplitsAddUpToThePass) {
  const Model m = model(7);
  const Placement where = placement(m, all_kinds(), Where::cpu);
  const Machine machine = any_machine();
  std::vector<SplitTime> splits;
  PassCost cost(m, machine, pass(1));
  const PassTime time = cost.price(where, &splits);
  EXPECT_EQ(splits.front().begin_seconds, splits.front().copy_begin_seconds + splits.front().copy_seconds);
  for (size_t i = 1; i < splits.size(); ++i) {
    EXPECT_EQ(splits[i].begin_seconds, splits[i - 1].end_seconds);
    const double computed = splits[i].compute_begin_seconds + splits[i].compute_seconds;
    EXPECT_GE(splits[i].end_seconds + 1e-12, computed + splits[i].write_back_seconds);
    EXPECT_GE(splits[i].compute_begin_seconds + 1e-12, splits[i].begin_seconds + splits[i].exposed_seconds);
  }
  double write_back = 0.0;
  for (const SplitTime& split : splits) write_back += split.write_back_seconds;
  const auto& down = time.busy_seconds[static_cast<size_t>(Lane::down)];
  EXPECT_GT(write_back, 0.0);
  EXPECT_LT(write_back, down);  // activations and logits are of it, too
  const double inputs = machine.up.seconds(1.0, 1.0) * static_cast<double>(make_schedule(m, where, pass(1), cache_bytes(m)).input_bytes);
  EXPECT_NEAR(splits.back().end_seconds + inputs, time.seconds, 1e-12);
}

TEST(StreamSchedule, OperationsThatAreNotCountedCostNothing) {
  const Model m = model(3);
  const Placement where = placement(m, {LayerPlacement::uniform(Where::pinned)}, Where::pinned);
  const Machine machine = any_machine();
  const Executed executed(m, pass(1));
  std::vector<SplitTime> all;
  std::vector<SplitTime> some;
  static_cast<void>(PassCost(m, machine, pass(1)).price(where, &all));
  static_cast<void>(PassCost(m, machine, pass(1), executed).price(where, &some));
  const Schedule schedule = make_schedule(m, where, pass(1), cache_bytes(m));
  // q, k, v, output, gate, up, down and two writes of the cache, attention; the head.
  ASSERT_EQ(schedule.splits.back().operations.size(), 3U * 10U + 1U);
  EXPECT_LT(some.back().compute_seconds, all.back().compute_seconds);
  EXPECT_GT(some.back().compute_seconds, 0.0);
}

TEST(StreamSchedule, ListsWhatIsLeftOut) {
  const DataType unknown{16, 256, 66};  // IQ2_XXS
  const Model m = model(2, true, unknown);
  const Placement where = placement(m, {LayerPlacement::uniform(Where::cpu)}, Where::cpu);
  const Schedule schedule = make_schedule(m, where, pass(1), cache_bytes(m));
  const auto left = std::find_if(schedule.left_out.begin(), schedule.left_out.end(),
                                 [](const LeftOut& l) { return l.what == "products of a weight type without a native kernel"; });
  ASSERT_NE(left, schedule.left_out.end());
  EXPECT_EQ(left->count, 2 * 2);
  EXPECT_EQ(left->weight_bytes, 2 * 2 * 8 * 256 * 66);
}

TEST(StreamSchedule, RefusesSeveralSequences) {
  const Model m = model(2);
  Pass two = pass(2);
  two.n_seqs = 2;
  const Placement where = placement(m, {LayerPlacement::uniform(Where::cpu)}, Where::cpu);
  EXPECT_THROW(static_cast<void>(make_schedule(m, where, two, cache_bytes(m))), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(make_schedule(m, where, pass(2), {1})), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
