#include "fleet/device_costs.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

#include "cost/pass_cost.hpp"
#include "planning_cases.hpp"

namespace pshard {
namespace {

Pass pass(int64_t n_tokens) {
  Pass p;
  p.n_tokens = n_tokens;
  p.n_outputs = 1;
  return p;
}

double sum(const std::vector<Cost>& costs) {
  double seconds = 0.0;
  for (const Cost& cost : costs) seconds += cost.seconds;
  return seconds;
}

double whole_pass(const Model& model, const Machine& machine, const Pass& p, Where where) {
  Placement placement;
  placement.patterns = {LayerPlacement::uniform(where)};
  placement.layer_pattern.assign(model.layers().size(), 0);
  placement.head = where;
  return PassCost(model, machine, p).price(placement).seconds;
}

TEST(DeviceCosts, AddUpToTheWholePass) {
  const Model model = cases::model(4);
  const Machine machine = cases::machine();
  for (const int64_t n_tokens : {1, 64, 512}) {
    const DeviceCosts gpu = device_costs(model, machine, pass(n_tokens), true);
    const DeviceCosts cpu = device_costs(model, machine, pass(n_tokens), false);
    ASSERT_EQ(gpu.layers.size(), 4U);
    EXPECT_NEAR(sum(cpu.layers) + cpu.head.seconds + cpu.embedding.seconds, whole_pass(model, machine, pass(n_tokens), Where::cpu),
                1e-3 * sum(cpu.layers));
    // On a GPU the embedded tokens and the inputs go up first, and the logits come down.
    const auto copies = static_cast<double>(gpu.hidden_bytes + gpu.input_bytes + gpu.logits_bytes) * 1e-9;
    EXPECT_NEAR(sum(gpu.layers) + gpu.head.seconds + gpu.embedding.seconds + copies,
                whole_pass(model, machine, pass(n_tokens), Where::pinned), 0.01 * (sum(gpu.layers) + copies));
  }
}

TEST(DeviceCosts, SayWhatTravels) {
  const Model model = cases::model(2);
  const DeviceCosts costs = device_costs(model, cases::machine(), pass(8), true);
  EXPECT_EQ(costs.hidden_bytes, 4 * 8 * model.hyperparameters().n_embd);
  EXPECT_EQ(costs.logits_bytes, 4 * model.hyperparameters().n_vocab);
  EXPECT_GT(costs.input_bytes, 0);
}

TEST(DeviceCosts, OfAGpuThatIsNotThereAreRefused) {
  Machine machine = cases::machine();
  machine.has_gpu = false;
  EXPECT_THROW((void)device_costs(cases::model(1), machine, pass(1), true), std::invalid_argument);
  EXPECT_NO_THROW((void)device_costs(cases::model(1), machine, pass(1), false));
}

}  // namespace
}  // namespace pshard
