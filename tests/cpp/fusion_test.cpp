// Runs that are one kernel, after the rules of llama.cpp's CUDA backend. tests/python/test_fusion.py holds the number of kernels of whole
// models against what that backend launched.
#include "model/fusion.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "planning_cases.hpp"
#include "tiny_model.hpp"

namespace pshard {
namespace {

Pass pass(int64_t n_tokens) {
  Pass p;
  p.n_tokens = n_tokens;
  p.n_outputs = 1;
  p.n_kv = 256;
  return p;
}

// Runs by the operations in them that are no views.
std::vector<std::string> runs(const Block& block) {
  std::vector<std::string> names;
  for (const KernelRun& run : fusion_of(block).runs) {
    std::string& name = names.emplace_back();
    for (auto i = static_cast<size_t>(run.first); i <= static_cast<size_t>(run.last); ++i) {
      const Operation& operation = block.operations[i];
      if (operation.is_view) continue;
      constexpr std::array kNames{"other", "norm", "scale", "multiply", "add", "rope", "gate", "activate", "convolve", "write"};
      const bool is_product = operation.kind == OpKind::mul_mat || operation.kind == OpKind::mul_mat_id;
      name += std::string(name.empty() ? "" : " ") + (is_product ? "product" : kNames.at(static_cast<size_t>(operation.step)));
    }
  }
  return names;
}

Block layer(const Pass& p) {
  static const Model model = tiny::model();
  return layer_block(model, model.layers()[0], p, false);
}

const std::vector<std::string> kOfOneToken{"norm multiply", "rope write",           "product add",
                                           "norm multiply", "product product gate", "product add"};

TEST(Fusion, OfOneTokenProductsAddAndGate) { EXPECT_EQ(runs(layer(pass(1))), kOfOneToken); }

TEST(Fusion, OfSeveralTokensTheyDoNot) {
  EXPECT_EQ(runs(layer(pass(2))), (std::vector<std::string>{"norm multiply", "rope write", "norm multiply"}));
}

TEST(Fusion, AQuantisedCacheIsWrittenApart) {
  Pass p = pass(1);
  p.type_k = DataType{8, 32, 34};
  const std::vector<std::string> found = runs(layer(p));
  EXPECT_EQ(std::count(found.begin(), found.end(), "rope write"), 0);
}

TEST(Fusion, WhatIsReadElsewhereStaysInMemory) {
  // The sum behind the attention is read by the norm and by the sum behind the FFN: no run ends in more than it.
  const Block block = layer(pass(1));
  int64_t inner = 0;
  for (const int64_t n_bytes : fusion_of(block).inner_bytes) inner += n_bytes;
  // Written and read: two norms, two products before their sums, gate and up, and the roped keys of one token.
  EXPECT_EQ(inner, 2 * 4 * (2 * tiny::kEmbd + 2 * tiny::kEmbd + 2 * tiny::kFfn + tiny::kHeadsKv * tiny::kHeadDim));
}

TEST(Fusion, NothingIsGatedOverItsOwnOperand) {
  // What two experts of 500 make fits where their operand of 1000 was, which nobody reads behind them. Of the dense layer 2000 do not fit.
  for (const bool with_experts : {false, true}) {
    const Model model = cases::model(2, with_experts);
    const std::vector<std::string> found = runs(layer_block(model, model.layers()[0], pass(1), false));
    EXPECT_EQ(std::count(found.begin(), found.end(), "product product gate"), with_experts ? 0 : 1);
  }
}

TEST(Fusion, RoutingAndTheSumOfExpertsAreOneKernelEach) {
  const Model model = cases::model(2, true);
  for (const int64_t n_tokens : {1, 512}) {
    const Block block = layer_block(model, model.layers()[0], pass(n_tokens), false);
    EXPECT_EQ(block.kernels.size(), 2U);
    for (const KernelRun& known : block.kernels) {
      const std::vector<KernelRun> all = fusion_of(block).runs;
      EXPECT_EQ(
          std::count_if(all.begin(), all.end(), [&](const KernelRun& run) { return run.first == known.first && run.last == known.last; }),
          1);
    }
  }
}

TEST(Fusion, RunsAreInOrderAndApart) {
  const Model model = cases::model(2, true);
  for (const int64_t n_tokens : {1, 3, 4, 5, 512}) {
    const Block block = layer_block(model, model.layers()[0], pass(n_tokens), false);
    int32_t behind = -1;
    for (const KernelRun& run : fusion_of(block).runs) {
      EXPECT_GT(run.first, behind);
      EXPECT_GT(run.last, run.first);
      behind = run.last;
    }
    for (size_t i = 0; i < block.operations.size(); ++i) {
      EXPECT_LE(fusion_of(block).inner_bytes[i], block.operations[i].activation_bytes);
    }
  }
}

}  // namespace
}  // namespace pshard
