#include "model/tensor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace pshard {
namespace {

struct NamedGroup {
  const char* name;
  Group group;
};

class GroupOf : public testing::TestWithParam<NamedGroup> {};

TEST_P(GroupOf, KnowsTheNamesOfLlamaCpp) { EXPECT_EQ(group_of(GetParam().name), GetParam().group) << GetParam().name; }

INSTANTIATE_TEST_SUITE_P(
    Names, GroupOf,
    testing::Values(
        NamedGroup{"blk.0.attn_norm.weight", Group::norms}, NamedGroup{"blk.0.attn_norm_2.bias", Group::norms},
        NamedGroup{"blk.0.attn_output_norm.weight", Group::norms}, NamedGroup{"blk.0.post_attention_norm.weight", Group::norms},
        NamedGroup{"blk.0.post_ffw_norm.weight", Group::norms}, NamedGroup{"blk.0.layer_output_norm.weight", Group::norms},
        NamedGroup{"blk.0.ffn_norm", Group::norms}, NamedGroup{"blk.0.ffn_norm_exps.weight", Group::norms},
        NamedGroup{"blk.0.attn_q.weight", Group::attention}, NamedGroup{"blk.0.attn_q.bias", Group::attention},
        NamedGroup{"blk.0.attn_q_norm.weight", Group::attention}, NamedGroup{"blk.0.attn_qkv.weight", Group::attention},
        NamedGroup{"blk.0.attn_kv_a_mqa.weight", Group::attention}, NamedGroup{"blk.0.attn_kv_a_norm.weight", Group::attention},
        NamedGroup{"blk.0.attn_output.weight", Group::attention}, NamedGroup{"blk.0.attn_sinks.weight", Group::attention},
        NamedGroup{"blk.0.indexer.proj.weight", Group::attention}, NamedGroup{"blk.0.ssm_in.weight", Group::mixer},
        NamedGroup{"blk.0.ssm_a", Group::mixer}, NamedGroup{"blk.0.ssm_norm.weight", Group::mixer},
        NamedGroup{"blk.0.shortconv.in_proj.weight", Group::mixer}, NamedGroup{"blk.0.ffn_up.weight", Group::ffn_up},
        NamedGroup{"blk.0.ffn_gate.bias", Group::ffn_gate}, NamedGroup{"blk.0.ffn_down.weight", Group::ffn_down},
        NamedGroup{"blk.0.ffn_gate_inp.weight", Group::router}, NamedGroup{"blk.0.ffn_gate_inp_shexp.weight", Group::router},
        NamedGroup{"blk.0.exp_probs_b.bias", Group::router}, NamedGroup{"blk.0.ffn_up_exps.weight", Group::experts_up},
        NamedGroup{"blk.0.ffn_gate_exps.weight", Group::experts_gate}, NamedGroup{"blk.0.ffn_down_exps.bias", Group::experts_down},
        NamedGroup{"blk.0.ffn_gate_up_exps.weight", Group::experts_up}, NamedGroup{"blk.0.ffn_up_chexps.weight", Group::experts_up},
        NamedGroup{"blk.0.ffn_gate.7.weight", Group::experts_gate}, NamedGroup{"blk.0.ffn_up_shexp.weight", Group::shared_up},
        NamedGroup{"blk.0.ffn_gate_shexp.weight", Group::shared_gate}, NamedGroup{"blk.0.ffn_down_shexp.weight", Group::shared_down},
        NamedGroup{"blk.0.time_mix_key.weight", Group::mixer}, NamedGroup{"blk.0.channel_mix_key.weight", Group::ffn_up},
        NamedGroup{"blk.0.channel_mix_value.weight", Group::ffn_down}, NamedGroup{"blk.0.channel_mix_lerp_k.weight", Group::norms},
        NamedGroup{"per_layer_model_proj.weight", Group::norms}, NamedGroup{"altup_proj.weight", Group::head},
        NamedGroup{"blk.46.nextn.eh_proj.weight", Group::norms}, NamedGroup{"blk.0.never_heard_of.weight", Group::norms},
        NamedGroup{"output.weight", Group::head}, NamedGroup{"output.bias", Group::head}, NamedGroup{"output_norm.weight", Group::head},
        NamedGroup{"cls.output.weight", Group::head}, NamedGroup{"dense_2.weight", Group::head},
        NamedGroup{"token_embd.weight", Group::embedding}, NamedGroup{"token_embd_norm.weight", Group::embedding},
        NamedGroup{"per_layer_token_embd.weight", Group::embedding}, NamedGroup{"rope_freqs.weight", Group::embedding}));

TEST(LayerOf, ReadsTheNumberAndNothingElse) {
  EXPECT_EQ(layer_of("blk.0.a"), 0);
  EXPECT_EQ(layer_of("blk.127.attn_q.weight"), 127);
  EXPECT_EQ(layer_of("enc.blk.3.ffn_up.weight"), 3);
  EXPECT_EQ(layer_of("dec.blk.0.a"), 0);
  EXPECT_EQ(layer_of("per_layer_model_proj.weight"), 0);
  EXPECT_EQ(layer_of("per_layer_token_embd.weight"), -1);
  for (const char* other : {"output.weight", "blk.", "blk.x.a", "blk.3", "blk.-1.a", "blk.99999999999.a", "v.blk.0.a", ""}) {
    EXPECT_EQ(layer_of(other), -1) << other;
  }
}

TEST(LocalName, DropsTheLayer) {
  EXPECT_EQ(local_name("blk.12.ffn_gate.7.weight"), "ffn_gate.7.weight");
  EXPECT_EQ(local_name("output.weight"), "output.weight");
}

TEST(ToString, NamesEveryGroupOnce) {
  std::vector<std::string> seen;
  for (int i = 0; i < kGroupCount; ++i) seen.emplace_back(to_string(static_cast<Group>(i)));
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::unique(seen.begin(), seen.end()), seen.end());
  EXPECT_EQ(to_string(Group::head), "head");
}

}  // namespace
}  // namespace pshard
