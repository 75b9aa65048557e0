#include "memory/live_bytes.hpp"

#include <gtest/gtest.h>

#include <utility>

namespace pshard {
namespace {

Operation operation(std::initializer_list<int32_t> inputs, int32_t output, uint8_t overwrites = 0) {
  Operation result;
  result.output = output;
  result.overwrites = overwrites;
  size_t i = 0;
  for (const int32_t input : inputs) result.inputs.at(i++) = input;
  return result;
}

Operation view(int32_t of, int32_t output) {
  Operation result = operation({of}, output);
  result.is_view = true;
  return result;
}

std::vector<int64_t> live(std::initializer_list<int64_t> value_bytes, std::vector<Operation> operations, std::vector<Device> devices) {
  Block block;
  for (const int64_t n_bytes : value_bytes) block.values.push_back(Value{.n_bytes = n_bytes});
  block.operations = std::move(operations);
  std::vector<ScheduledOperation> scheduled(devices.size());
  for (size_t i = 0; i < devices.size(); ++i) scheduled[i].device = devices[i];
  return live_gpu_bytes(block, scheduled);
}

using Bytes = std::vector<int64_t>;
constexpr Device kGpu = Device::gpu;
constexpr Device kHost = Device::host;

// 0 is read at the beginning and at the end.
TEST(LiveBytes, AreTheOperandsTheResultAndWhatIsReadLater) {
  EXPECT_EQ(live({1, 10, 100, 1000}, {operation({0}, 1), operation({1}, 2), operation({2, 0}, 3)}, {kGpu, kGpu, kGpu}),
            (Bytes{11, 111, 1101}));
}

TEST(LiveBytes, AResultMayTakeThePlaceOfTheLargestOperandThatEnds) {
  EXPECT_EQ(live({10, 10, 10, 10}, {operation({0}, 1), operation({0, 1}, 2, 0b11), operation({2, 1}, 3, 0b01)}, {kGpu, kGpu, kGpu}),
            (Bytes{20, 20, 20}));
  EXPECT_EQ(live({10, 10, 10}, {operation({0}, 1, 0b1), operation({0, 1}, 2)}, {kGpu, kGpu}), (Bytes{20, 30}));  // 0 is read again
}

TEST(LiveBytes, HostOperationsTakeNothing) {
  EXPECT_EQ(live({1, 10, 100, 1000}, {operation({0}, 1), operation({1}, 2), operation({2, 0}, 3)}, {kGpu, kHost, kGpu}),
            (Bytes{11, 0, 1101}));
}

// A view of what is computed here keeps all of it alive; of what came from elsewhere, perhaps only the view was copied.
TEST(LiveBytes, CountAViewOnceWithWhatItLooksInto) {
  EXPECT_EQ(live({1, 10, 4, 100}, {operation({0}, 1), view(1, 2), operation({2, 1}, 3)}, {kGpu, kGpu, kGpu}), (Bytes{11, 0, 110}));
  EXPECT_EQ(live({10, 4, 100}, {view(0, 1), operation({1}, 2)}, {kGpu, kGpu}), (Bytes{0, 104}));
}

TEST(LiveBytes, AResultWrittenIntoAnOperandIsNoMore) {
  Operation write = operation({1, 0}, 2);
  write.writes_into = 1;
  EXPECT_EQ(live({10, 3, 10, 1}, {write, operation({2}, 3)}, {kGpu, kGpu}), (Bytes{13, 11}));
}

TEST(LiveBytes, AWeightIsCopiedForItsOperation) {
  const Tensor weight{"w", {1, 1, 2}, {8, 8, 1, 1}, 128};
  Block block;
  block.values = {Value{.n_bytes = 1}, Value{.n_bytes = 10}};
  block.operations = {operation({kWeight, 0}, 1)};
  block.operations[0].weight = &weight;
  std::vector<ScheduledOperation> scheduled(1);
  scheduled[0] = {.device = kGpu, .lane = Where::pinned, .copies_weight = true};
  EXPECT_EQ(live_gpu_bytes(block, scheduled), (Bytes{139}));
}

}  // namespace
}  // namespace pshard
