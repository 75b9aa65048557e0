#include "memory/meter.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

#include "planning_cases.hpp"

namespace pshard {
namespace {

Placement placement(size_t n_layer, Where where, int n_gpu = 1) {
  Placement made;
  made.patterns = {LayerPlacement::uniform(where), LayerPlacement::uniform(Where::cpu)};
  made.layer_pattern.assign(n_layer, 0);
  made.layer_pattern.front() = 1;
  made.head = where;
  made.n_gpu = n_gpu;
  made.op_offload = n_gpu > 0;
  return made;
}

bool operator==(const DeviceBytes& a, const DeviceBytes& b) {
  return a.weights_bytes == b.weights_bytes && a.cache_bytes == b.cache_bytes && a.compute_bytes == b.compute_bytes &&
         a.stream_bytes == b.stream_bytes;
}

TEST(Meter, SaysWhatMemorySaysWhateverWasAskedBefore) {
  const Model model = cases::model(4);
  ContextParameters context;
  for (const bool is_auto : {false, true}) {
    context.flash_attn_auto = is_auto;
    Meter meter(model, context, 512, 2);
    for (const Placement& asked : {placement(4, Where::pinned, 2), placement(4, pinned_on(1), 2), placement(4, Where::cpu, 0),
                                   placement(4, Where::pinned), placement(4, Where::pinned, 2)}) {
      const MemoryReport found = meter(asked);
      const MemoryReport expected = memory(model, asked, context, 512);
      ASSERT_EQ(found.gpus.size(), expected.gpus.size());
      for (size_t gpu = 0; gpu < found.gpus.size(); ++gpu) EXPECT_TRUE(found.gpus[gpu] == expected.gpus[gpu]) << gpu;
      EXPECT_TRUE(found.host == expected.host);
    }
  }
}

TEST(Meter, ResidentMemoryIsAllButCompute) {
  const Model model = cases::model(4);
  const Placement asked = placement(4, Where::pinned);
  const MemoryReport all = memory(model, asked, {}, 512);
  const MemoryReport resident = resident_memory(model, asked, {});
  EXPECT_EQ(resident.gpu().total(), all.gpu().weights_bytes + all.gpu().cache_bytes);
  EXPECT_EQ(resident.host.total(), all.host.weights_bytes + all.host.cache_bytes);
}

TEST(Meter, RefusesPlacementsThatCannotBe) {
  const Model model = cases::model(4);
  EXPECT_THROW(static_cast<void>(Meter(model, {}, 512, 1)(placement(3, Where::pinned))), std::invalid_argument);
  Placement nowhere = placement(4, Where::cpu, 0);
  nowhere.op_offload = true;
  EXPECT_THROW(static_cast<void>(Meter(model, {}, 512, 0)(nowhere)), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
