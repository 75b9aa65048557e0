#include "probe/gpu_shapes.hpp"

#include <gtest/gtest.h>

#include <functional>

namespace pshard {
namespace {

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(GpuShapes, RefuseWhatNoKernelTakes) {
  const auto product = [](const GpuProduct& shape) { return message_of([&] { check(shape); }); };
  EXPECT_EQ(product({WeightType::q4_k, 64, 512, 8192}), "");
  EXPECT_EQ(product({WeightType::q4_k, 64, 512, 8193}), "batch is 8193, must be from 1 to 8192");
  EXPECT_EQ(product({WeightType::q4_k, 0, 512, 1}), "n_rows is 0, must be from 1 to 8388480");
  EXPECT_EQ(product({WeightType::q4_k, 64, 288, 1}), "n_columns is 288, Q4_K needs a positive multiple of 256");
  EXPECT_EQ(product({WeightType::f16, 64, 48, 1}), "n_columns is 48, kernels take multiples of 32");
  const auto experts = [](const GpuExperts& shape) { return message_of([&] { check(shape); }); };
  EXPECT_EQ(experts({WeightType::q8_0, 64, 64, 1024, 8, 8192, true}), "");
  EXPECT_EQ(experts({WeightType::q8_0, 64, 64, 1025, 8, 1, false}), "n_experts is 1025, must be from 1 to 1024");
  EXPECT_EQ(experts({WeightType::q8_0, 64, 64, 4, 5, 1, false}), "n_used is 5, must be from 1 to n_experts");
  const auto attention = [](const AttentionShape& shape) { return message_of([&] { check_gpu(shape); }); };
  EXPECT_EQ(attention({8, 2, 128, 100, 100}), "");
  EXPECT_EQ(attention({8, 2, 80, 100, 1}), "head_size is 80, there are kernels for 64, 96, 128, 192 and 256");
  EXPECT_EQ(attention({8, 3, 128, 100, 1}), "n_heads is 8, must be a positive multiple of n_kv_heads");
  EXPECT_EQ(attention({8, 2, 128, 99, 100}), "depth is 99, must be at least the batch");
}

TEST(GpuShapes, PartsCoverAllColumnsAndFillTheDevice) {
  for (const int64_t columns : {256, 512, 4096, 14336, 28672}) {
    for (const int64_t rows : {1, 128, 1024, 4096, 128256}) {
      for (const int64_t batch : {9, 32, 512, 8192}) {
        const ProductLayout layout = layout_of(GpuProduct{WeightType::q4_k, rows, columns, batch});
        EXPECT_FALSE(layout.is_vector);
        EXPECT_EQ(layout.part_columns % 32, 0);
        EXPECT_GE(layout.n_parts * layout.part_columns, columns);
        EXPECT_LT((layout.n_parts - 1) * layout.part_columns, columns) << "no part is empty";
        EXPECT_TRUE(layout.n_parts == 1 || layout.part_columns >= 512);
      }
    }
  }
  EXPECT_GT(layout_of(GpuProduct{WeightType::q4_k, 4096, 4096, 16}).n_parts, 1) << "32 tiles are few";
  EXPECT_EQ(layout_of(GpuProduct{WeightType::q4_k, 4096, 4096, 2048}).n_parts, 1);
}

TEST(GpuShapes, SplitsCoverTheCache) {
  for (const int64_t depth : {1, 128, 300, 4096, 131072}) {
    for (const int64_t batch : {1, 8}) {
      if (depth < batch) continue;
      const AttentionLayout layout = layout_of(AttentionShape{32, 8, 128, depth, batch});
      EXPECT_TRUE(layout.is_split);
      EXPECT_EQ(layout.cells_per_split % 64, 0);
      EXPECT_GE(layout.n_splits * layout.cells_per_split, depth);
      EXPECT_LT((layout.n_splits - 1) * layout.cells_per_split, depth) << "no split is empty";
    }
  }
  EXPECT_FALSE(layout_of(AttentionShape{32, 8, 128, 4096, 9}).is_split);
  EXPECT_EQ(layout_of(AttentionShape{32, 8, 128, 4096, 1}).heads_per_block, 4);
  EXPECT_EQ(layout_of(AttentionShape{14, 2, 64, 4096, 1}).heads_per_block, 1) << "seven heads share keys";
}

}  // namespace
}  // namespace pshard
