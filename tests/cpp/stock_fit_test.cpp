#include "plan/stock_fit.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "planning_cases.hpp"

namespace pshard {
namespace {

ContextParameters context(int64_t n_ctx) {
  ContextParameters c;
  c.n_ctx = n_ctx;
  return c;
}

int64_t whole_bytes(const Model& model, int64_t n_ctx) {
  return stock_fit(model, context(n_ctx), {.gpus = {{.free_bytes = int64_t{1} << 50}}}).memory.gpu().total();
}

FitRequest one_gpu(int64_t free_bytes, int64_t margin_bytes = 0) { return {.gpus = {{free_bytes, margin_bytes}}}; }

TEST(StockFit, WhatFitsIsMeasuredOnceAndLeftAlone) {
  const Model model = cases::model(8);
  const int64_t bytes = whole_bytes(model, 8192);
  const StockFit fit = stock_fit(model, context(8192), one_gpu(bytes + 1000, 1000));
  EXPECT_EQ(fit.outcome, FitOutcome::unchanged);
  EXPECT_EQ(fit.n_measured, 1);
  EXPECT_EQ(stock_fit(model, context(8192), one_gpu(bytes + 999, 1000)).outcome, FitOutcome::distributed);
}

TEST(StockFit, AnOpenContextIsTheTrainedOneUnlessItDoesNotFit) {
  const Model model = cases::model(8);
  EXPECT_EQ(stock_fit(model, context(0), one_gpu(int64_t{1} << 50)).n_ctx, 32768);
  const int64_t target = (whole_bytes(model, 32768) + whole_bytes(model, 4096)) / 2;
  const StockFit fit = stock_fit(model, context(0), one_gpu(target));
  EXPECT_EQ(fit.outcome, FitOutcome::shorter_context);
  EXPECT_EQ(fit.n_ctx % 256, 0);
  EXPECT_NEAR(static_cast<double>(fit.n_ctx), (32768 + 4096) / 2.0, 256);
  FitRequest full = one_gpu(target);
  full.n_ctx_min = kFullContext;
  const StockFit kept = stock_fit(model, context(0), full);
  EXPECT_EQ(kept.outcome, FitOutcome::distributed);
  EXPECT_EQ(kept.n_ctx, 32768);
}

TEST(StockFit, EverySequenceWithACacheOfItsOwnHasTheWholeContext) {
  const Model model = cases::model(8);
  ContextParameters four = context(0);
  four.n_seq_max = 4;
  EXPECT_EQ(stock_fit(model, four, one_gpu(int64_t{1} << 50)).n_ctx, 4 * 32768);
  const StockFit least = stock_fit(model, four, one_gpu(1));
  EXPECT_EQ(least.n_ctx, 4 * 4096);
  four.kv_unified = true;
  EXPECT_EQ(stock_fit(model, four, one_gpu(int64_t{1} << 50)).n_ctx, 32768);
}

TEST(StockFit, OneMoreLayerWouldNotFit) {
  const Model model = cases::model(24);
  const int64_t whole = whole_bytes(model, 8192);
  for (int percent = 40; percent < 100; percent += 7) {
    const int64_t target = whole * percent / 100;
    const StockFit fit = stock_fit(model, context(8192), one_gpu(target));
    const uint32_t n_layer = fit.layers.at(0).n_layer;
    ASSERT_GT(n_layer, 0U) << percent;
    EXPECT_LE(fit.memory.gpu().total(), target);
    FitShapes shapes(model, {target}, true, true);
    EXPECT_GT(memory(model, shapes.distributed({{n_layer + 1, 0, Overflow::none}}), context(8192), 512).gpu().total(), target);
  }
}

TEST(StockFit, WhatIsGivenIsNotChanged) {
  const Model model = cases::model(8);
  FitRequest request = one_gpu(1);
  FitShapes shapes(model, {1}, true, true);
  request.given = shapes.distributed({{3, 0, Overflow::none}});
  const StockFit refused = stock_fit(model, context(8192), request);
  EXPECT_EQ(refused.outcome, FitOutcome::refused);
  EXPECT_TRUE(refused.layers.empty());
  request.gpus[0].free_bytes = refused.memory.gpu().total();
  EXPECT_EQ(stock_fit(model, context(8192), request).outcome, FitOutcome::unchanged);
  request.gpus.push_back(request.gpus[0]);
  EXPECT_THROW(static_cast<void>(stock_fit(model, context(8192), request)), std::invalid_argument);
}

TEST(StockFit, WithoutAGpuHostMemoryLimitsTheContextAlone) {
  const Model model = cases::model(8);
  const StockFit all = stock_fit(model, context(0), {});
  EXPECT_EQ(all.outcome, FitOutcome::unchanged);
  EXPECT_TRUE(all.memory.gpus.empty());
  FitRequest request;
  request.host = FitDevice{.free_bytes = all.memory.host.total() - 1, .margin_bytes = 0};
  const StockFit shorter = stock_fit(model, context(0), request);
  EXPECT_EQ(shorter.outcome, FitOutcome::shorter_context);
  EXPECT_LT(shorter.n_ctx, 32768);
  request.host->free_bytes = 1000;
  EXPECT_EQ(stock_fit(model, context(0), request).outcome, FitOutcome::refused);
}

TEST(StockFit, ExpertsComeBackOnceEverythingElseFits) {
  const Model model = cases::model(8, true);
  const int64_t whole = whole_bytes(model, 4096);
  const StockFit fit = stock_fit(model, context(4096), one_gpu(whole - static_cast<int64_t>(2.5 * 3 * cases::kExpertTensorBytes)));
  const GpuLayers& layers = fit.layers.at(0);
  EXPECT_EQ(layers.n_layer, 9U);
  EXPECT_GT(layers.n_partial, 0U);
  EXPECT_LT(layers.n_partial, 5U);
  EXPECT_EQ(fit.placement.layer(0), LayerPlacement::uniform(Where::pinned));
}

TEST(StockFit, AModelWithoutATrainingLengthNeedsAContext) {
  const Model plain = cases::model(2);
  Hyperparameters h = plain.hyperparameters();
  h.n_ctx_train = 0;
  const Model model(h, cases::tensors_of(plain));
  EXPECT_THROW(static_cast<void>(stock_fit(model, context(0), one_gpu(1))), std::invalid_argument);
  EXPECT_EQ(stock_fit(model, context(512), one_gpu(int64_t{1} << 40)).n_ctx, 512);
}

}  // namespace
}  // namespace pshard
