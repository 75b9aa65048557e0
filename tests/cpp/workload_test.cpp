#include "plan/workload.hpp"

#include <gtest/gtest.h>

#include "planning_cases.hpp"

namespace pshard {
namespace {

using Tiers = std::vector<int64_t>;

ContextParameters context(int64_t n_ctx, int64_t n_seq_max = 1) {
  ContextParameters c;
  c.n_ctx = n_ctx;
  c.n_seq_max = n_seq_max;
  return c;
}

TEST(TierLadder, IsThatOfTheReference) {
  EXPECT_EQ(tier_ladder(context(8192), 0, 0), (Tiers{1, 16, 512, 1024, 2048, 4096, 8192}));
  EXPECT_EQ(tier_ladder(context(700), 0, 0), (Tiers{1, 16, 512, 700}));
  EXPECT_EQ(tier_ladder(context(131072), 0, 0), (Tiers{1, 16, 512, 1024, 2048, 4096, 8192, 16384}));
  EXPECT_EQ(tier_ladder(context(8192, 4), 0, 0), (Tiers{1, 4, 16, 32, 64, 512, 1024, 2048, 4096, 8192}));
}

TEST(TierLadder, EndsAtTheLargestTier) {
  EXPECT_EQ(tier_ladder(context(8192), 0, 2048), (Tiers{1, 16, 512, 1024, 2048}));
  EXPECT_EQ(tier_ladder(context(8192), 0, 3000), (Tiers{1, 16, 512, 1024, 2048, 3000}));
  EXPECT_EQ(tier_ladder(context(8192), 0, 100000), (Tiers{1, 16, 512, 1024, 2048, 4096, 8192}));
  EXPECT_EQ(tier_ladder(context(8192), 0, 16), (Tiers{1, 16}));
  EXPECT_EQ(tier_ladder(context(10), 0, 0), (Tiers{1, 10}));
  EXPECT_EQ(tier_ladder(context(1), 0, 0), (Tiers{1}));
  ContextParameters large_batch = context(65536);
  large_batch.n_batch = 32768;
  EXPECT_EQ(tier_ladder(large_batch, 0, 0).back(), 32768);
}

TEST(TierLadder, HasATierForDrafts) {
  EXPECT_EQ(tier_ladder(context(700), 4, 0), (Tiers{1, 5, 16, 512, 700}));
  EXPECT_EQ(tier_ladder(context(700), 24, 0), (Tiers{1, 16, 25, 512, 700}));
  EXPECT_EQ(tier_ladder(context(700), 15, 0), (Tiers{1, 16, 512, 700}));  // is one already
}

TEST(MeanFill, IsTheMiddleOfTheWork) {
  const Model model = cases::model(1);
  const Workload workload{2048, 256};
  EXPECT_EQ(mean_fill(model, context(8192), workload, 1), 2048 + 128);
  EXPECT_EQ(mean_fill(model, context(8192), workload, 16), 2048 + 128);
  EXPECT_EQ(mean_fill(model, context(8192), workload, 512), (2048 + 512) / 2);
  EXPECT_EQ(mean_fill(model, context(8192), workload, 4096), 4096);  // reads at least what it writes
  EXPECT_EQ(mean_fill(model, context(1024), workload, 1), 1024);     // a cache holds no more
}

TEST(TierPass, ReadsCellsInStepsOf256) {
  const Model model = cases::model(1);
  const Pass decode = tier_pass(model, context(8192), {2048, 256}, 1);
  EXPECT_EQ(decode.n_tokens, 1);
  EXPECT_EQ(decode.n_outputs, 1);
  EXPECT_EQ(decode.n_kv, 2304);                                               // 2176 rounded up
  EXPECT_EQ(tier_pass(model, context(8192), {2048, 256}, 16).n_outputs, 16);  // every drafted token is verified
  const Pass prompt = tier_pass(model, context(8192), {2048, 256}, 512);
  EXPECT_EQ(prompt.n_outputs, 1);
  EXPECT_EQ(prompt.n_kv, 1280);
}

TEST(TierPass, GivesEverySequenceItsStream) {
  const Model model = cases::model(1);
  const Pass pass = tier_pass(model, context(8192, 4), {1024, 0}, 64);
  EXPECT_EQ(pass.n_seqs, 4);
  EXPECT_EQ(pass.n_streams, 4);
  EXPECT_EQ(pass.n_kv, 1024);
  EXPECT_EQ(tier_pass(model, context(8192, 4), {1024, 0}, 512).n_outputs, 4);  // the last token of each
}

TEST(TierPass, HasNoMoreSequencesThanTokens) {
  const Model model = cases::model(1);
  const Pass one = tier_pass(model, context(8192, 4), {1024, 0}, 1);
  EXPECT_EQ(one.n_tokens, 1);
  EXPECT_EQ(one.n_seqs, 1);
  EXPECT_EQ(one.n_streams, 1);
  EXPECT_EQ(tier_pass(model, context(8192, 4), {1024, 0}, 5).n_tokens, 5);
}

TEST(PromptPasses, AreOfOneSequence) {
  const Model model = cases::model(1);
  for (const WeightedPass& weighted : prompt_passes(model, context(8192, 4), {1500, 0}, 1024)) {
    EXPECT_EQ(weighted.pass.n_seqs, 1);
    EXPECT_EQ(weighted.pass.n_streams, 1);
  }
}

TEST(PromptPasses, AreFullOnesAndARest) {
  const Model model = cases::model(1);
  const std::vector<WeightedPass> passes = prompt_passes(model, context(8192), {2500, 0}, 1024);
  ASSERT_EQ(passes.size(), 2u);
  // Two of 1024 that read 1024 and 2048 cells, on average 1536; one of 452 at the end.
  EXPECT_DOUBLE_EQ(passes[0].count, 2.0);
  EXPECT_EQ(passes[0].pass.n_tokens, 1024);
  EXPECT_EQ(passes[0].pass.n_kv, 1536);
  EXPECT_DOUBLE_EQ(passes[1].count, 1.0);
  EXPECT_EQ(passes[1].pass.n_tokens, 452);
  EXPECT_EQ(passes[1].pass.n_kv, 2560);
  EXPECT_EQ(passes[1].pass.n_outputs, 1);
}

TEST(PromptPasses, LeaveOutWhatIsEmpty) {
  const Model model = cases::model(1);
  EXPECT_EQ(prompt_passes(model, context(8192), {1024, 0}, 512).size(), 1u);
  EXPECT_EQ(prompt_passes(model, context(8192), {100, 0}, 512).size(), 1u);
  EXPECT_TRUE(prompt_passes(model, context(8192), {0, 5}, 512).empty());
}

}  // namespace
}  // namespace pshard
