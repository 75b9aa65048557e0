#include "memory/kernel_buffers.hpp"

#include <gtest/gtest.h>

#include "tiny_model.hpp"

namespace pshard {
namespace {

constexpr int64_t kTokens = 64;

Placement everywhere(Where where, int n_gpu = 1) {
  Placement placement;
  placement.n_gpu = n_gpu;
  placement.patterns = {LayerPlacement::uniform(where)};
  placement.layer_pattern = {0, 0};
  placement.head = where;
  return placement;
}

TEST(KernelDemand, IsOfTheWidestProduct) {
  const Model model = tiny::model();
  const KernelDemand demand = kernel_demand(model, everywhere(Where::pinned), {}, kTokens).front();
  // f16 weights: activations as f16, and the product before it is widened; the queries' projection is the widest.
  EXPECT_EQ(demand.pool_bytes, 2 * kTokens * (tiny::kEmbd + tiny::kHeads * tiny::kHeadDim));
  EXPECT_EQ(kernel_demand(model, everywhere(Where::pinned), {}, 2 * kTokens).front().pool_bytes, 2 * demand.pool_bytes);
}

TEST(KernelDemand, WithoutFlashAttentionHoldsTheWeightsOfAllCells) {
  ContextParameters context;
  context.n_ctx = 4096;
  context.flash_attn = false;
  const KernelDemand demand = kernel_demand(tiny::model(), everywhere(Where::pinned), context, kTokens).front();
  EXPECT_EQ(demand.pool_bytes, 2 * kTokens * (4096 + tiny::kHeadDim) * tiny::kHeads);
}

TEST(KernelDemand, IsWhereTheWeightsAre) {
  const Model model = tiny::model();
  EXPECT_EQ(kernel_demand(model, everywhere(Where::cpu), {}, kTokens).front().n_kernels, 0);
  const int64_t whole = kernel_demand(model, everywhere(Where::pinned), {}, kTokens).front().n_kernels;
  EXPECT_GT(whole, 20);

  Placement split = everywhere(Where::pinned, 2);
  split.patterns.push_back(LayerPlacement::uniform(pinned_on(1)));
  split.layer_pattern = {0, 1};
  split.head = pinned_on(1);
  const std::vector<KernelDemand> demands = kernel_demand(model, split, {}, kTokens);
  ASSERT_EQ(demands.size(), 2U);
  EXPECT_EQ(demands[0].n_kernels + demands[1].n_kernels, whole);
  EXPECT_LT(demands[0].n_kernels, demands[1].n_kernels);  // the head is on the second
}

TEST(KernelDemand, RefusesAnotherNumberOfLayers) {
  Placement placement = everywhere(Where::pinned);
  placement.layer_pattern.push_back(0);
  EXPECT_THROW(static_cast<void>(kernel_demand(tiny::model(), placement, {}, kTokens)), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
