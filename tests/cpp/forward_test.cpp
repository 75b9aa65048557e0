#include "model/forward.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "tiny_model.hpp"

namespace pshard {
namespace {

Pass pass_of(int64_t n_tokens, bool flash_attn = true) {
  Pass pass;
  pass.n_tokens = n_tokens;
  pass.n_outputs = 1;
  pass.n_kv = 256;
  pass.flash_attn = flash_attn;
  return pass;
}

double weighted_flop(const Block& block) {
  double total = 0.0;
  for (const Operation& operation : block.operations) {
    if (operation.kind == OpKind::mul_mat) total += operation.flop;
  }
  return total;
}

const Operation& first_of(const Block& block, OpKind kind) {
  return *std::find_if(block.operations.begin(), block.operations.end(), [&](const Operation& o) { return o.kind == kind; });
}

TEST(Forward, ALayerCostsTwoFlopPerWeightAndToken) {
  const Model model = tiny::model();
  const Block block = layer_block(model, model.layers()[0], pass_of(7), false);
  EXPECT_DOUBLE_EQ(weighted_flop(block), 2.0 * static_cast<double>(tiny::kLayerWeights) * 7);
  EXPECT_EQ(block.values[static_cast<size_t>(block.residual_out)].n_bytes, 7 * tiny::kEmbd * 4);
}

TEST(Forward, TheLastLayerDropsRowsBeforeItsFfn) {
  const Model model = tiny::model();
  const Block block = layer_block(model, model.layers()[1], pass_of(7), true);
  constexpr int64_t kFfnWeights = 3 * tiny::kEmbd * tiny::kFfn;
  EXPECT_DOUBLE_EQ(weighted_flop(block), 2.0 * static_cast<double>((tiny::kLayerWeights - kFfnWeights) * 7 + kFfnWeights));
  EXPECT_EQ(block.values[static_cast<size_t>(block.residual_out)].n_bytes, tiny::kEmbd * 4);
}

TEST(Forward, TheHeadComputesTheWantedRowsOnly) {
  const Model model = tiny::model();
  const Block block = head_block(model, pass_of(7));
  EXPECT_DOUBLE_EQ(weighted_flop(block), 2.0 * tiny::kEmbd * tiny::kVocab);
  EXPECT_EQ(block.values[static_cast<size_t>(block.residual_out)].n_bytes, tiny::kVocab * 4);
}

TEST(Forward, AttentionReadsTheCacheAndCostsFourFlopPerCellAndDimension) {
  const Model model = tiny::model();
  const Operation attention = first_of(layer_block(model, model.layers()[0], pass_of(7), false), OpKind::attention);
  EXPECT_EQ(attention.cache_bytes, 2 * tiny::kHeadsKv * tiny::kHeadDim * 2 * 256);
  EXPECT_DOUBLE_EQ(attention.flop, 4.0 * tiny::kHeads * tiny::kHeadDim * 7 * 256);
  EXPECT_EQ(attention.group, Group::cache);
}

double unmasked(int64_t n_tokens, int64_t n_filled, int64_t window = 0, const DataType& type_k = tiny::kF16) {
  const Model model = tiny::model(window);
  Pass pass = pass_of(n_tokens);
  pass.type_k = type_k;
  pass.n_kv = pass.n_kv_window = 256;
  pass.n_filled = n_filled;
  return first_of(layer_block(model, model.layers()[0], pass, false), OpKind::attention).unmasked;
}

TEST(Forward, ATokenSeesItselfAndWhatLiesBeforeIt) {
  EXPECT_DOUBLE_EQ(unmasked(1, 0), 1.0);  // of a full cache
  EXPECT_DOUBLE_EQ(unmasked(1, 100), 100.0 / 256);
  EXPECT_DOUBLE_EQ(unmasked(3, 10), (8.0 + 9 + 10) / (3 * 256));
  EXPECT_DOUBLE_EQ(unmasked(2, 100, 16), 16.0 / 256);
  EXPECT_DOUBLE_EQ(unmasked(128, 128), (64.0 + 128) / (2 * 256));  // in tiles of 64
  EXPECT_DOUBLE_EQ(unmasked(256, 256), (64.0 + 128 + 192 + 256) / (4 * 256));
  EXPECT_DOUBLE_EQ(unmasked(128, 128, 0, {8, 32, 34}), (1.0 + 128) / 2 / 256);  // each by itself over keys in Q8_0
}

TEST(Forward, AttentionTellsTheTypesOfItsCache) {
  const Model model = tiny::model();
  Pass pass = pass_of(7);
  pass.type_k = {8, 32, 34};
  pass.type_v = {2, 32, 18};
  const Operation attention = first_of(layer_block(model, model.layers()[0], pass, false), OpKind::attention);
  EXPECT_EQ(attention.key_type, 8);
  EXPECT_EQ(attention.value_type, 2);
}

TEST(Forward, WithoutFlashAttentionTheScoresAreAValue) {
  const Model model = tiny::model();
  const Block block = layer_block(model, model.layers()[0], pass_of(7, false), false);
  const Operation scores = first_of(block, OpKind::attention_kq);
  EXPECT_EQ(block.values[static_cast<size_t>(scores.output)].n_bytes, 256 * 7 * tiny::kHeads * 4);
  EXPECT_DOUBLE_EQ(scores.flop, 2.0 * tiny::kHeads * tiny::kHeadDim * 7 * 256);
}

TEST(Forward, AQuantisedCacheIsConvertedInScratch) {
  const Model model = tiny::model();
  Pass pass = pass_of(7);
  EXPECT_EQ(layer_block(model, model.layers()[0], pass, false).fused.size(), 0U);
  pass.type_k = pass.type_v = DataType{8, 32, 34};
  const Block block = layer_block(model, model.layers()[0], pass, false);
  const Operation attention = first_of(block, OpKind::attention);
  EXPECT_EQ(block.values[static_cast<size_t>(attention.output)].gpu_scratch_bytes, 2 * 256 * tiny::kHeadsKv * tiny::kHeadDim * 2);
}

TEST(Forward, EveryInputWasProducedOrIsAnInput) {
  const Model model = tiny::model(64);
  for (const bool flash_attn : {true, false}) {
    const Block block = layer_block(model, model.layers()[0], pass_of(40, flash_attn), true);
    std::vector<bool> known(block.values.size());
    known[static_cast<size_t>(block.residual_in)] = true;
    for (size_t v = 0; v < block.values.size(); ++v) known[v] = known[v] || block.values[v].is_input;
    for (const Operation& operation : block.operations) {
      for (const int32_t input : operation.inputs) {
        EXPECT_TRUE(!is_value(input) || known[static_cast<size_t>(input)]);
      }
      if (operation.output != kNoValue) known[static_cast<size_t>(operation.output)] = true;
    }
  }
}

TEST(Forward, AMissingTensorIsNamed) {
  Hyperparameters h = tiny::model().hyperparameters();
  const Model model(h, {tiny::tensor("token_embd.weight", 64, 100), tiny::tensor("blk.0.attn_norm.weight", 64),
                        tiny::tensor("blk.1.attn_norm.weight", 64)});
  try {
    static_cast<void>(layer_block(model, model.layers()[0], pass_of(1), false));
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("attn_q.weight"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pshard
