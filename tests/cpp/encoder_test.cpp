#include "model/encoder.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

#include "tiny_encoder.hpp"

namespace pshard {
namespace {

double flop_of(const Block& block, std::string_view weight) {
  double flop = 0.0;
  for (const Operation& operation : block.operations) {
    if (operation.kind == OpKind::mul_mat && operation.weight != nullptr && operation.weight->name == weight) flop += operation.flop;
  }
  return flop;
}

int64_t count(const Block& block, OpKind kind) {
  return std::count_if(block.operations.begin(), block.operations.end(), [&](const Operation& o) { return o.kind == kind && !o.is_view; });
}

TEST(Encoder, MultipliesEveryPatchByEveryWeight) {
  const Encoder encoder = tiny_images(64);
  const Block block = encoder_block(encoder, {.width = 8, .height = 8});
  EXPECT_EQ(flop_of(block, "v.patch_embd.weight"), 2.0 * 4 * 48 * 128);
  EXPECT_EQ(flop_of(block, "v.blk.0.attn_q.weight"), 2.0 * 4 * 128 * 128);
  EXPECT_EQ(flop_of(block, "v.blk.0.ffn_down.weight"), 2.0 * 4 * 512 * 128);
  EXPECT_EQ(flop_of(block, "mm.1.weight"), 2.0 * 4 * 128 * 128);
  EXPECT_EQ(count(block, OpKind::attention), 1);
  EXPECT_EQ(block.values[static_cast<size_t>(block.residual_out)].n_bytes, 4 * 128 * 4);
}

TEST(Encoder, WithoutFlashAttentionTwoProductsTakeItsPlace) {
  const Encoder encoder = tiny_images(64);
  const Block block = encoder_block(encoder, {.width = 8, .height = 8, .flash_attn = false});
  EXPECT_EQ(count(block, OpKind::attention), 0);
  EXPECT_EQ(count(block, OpKind::attention_kq), 2);
}

TEST(Encoder, OlderFilesMayHaveTheFfnsNamesSwapped) {
  Encoder swapped = tiny_images(64);
  for (Tensor& tensor : swapped.tensors) {
    if (tensor.name == "v.blk.0.ffn_up.weight") {
      tensor.name = "v.blk.0.ffn_down.weight";
    } else if (tensor.name == "v.blk.0.ffn_down.weight") {
      tensor.name = "v.blk.0.ffn_up.weight";
    }
  }
  const Block block = encoder_block(swapped, {.width = 8, .height = 8});
  EXPECT_EQ(flop_of(block, "v.blk.0.ffn_up.weight"), 2.0 * 4 * 512 * 128);
}

TEST(Encoder, WhatIsMissingIsNamed) {
  Encoder encoder = tiny_images(64);
  encoder.tensors.pop_back();
  const auto refused = [](const Encoder& e, const EncoderInput& input) {
    try {
      static_cast<void>(encoder_block(e, input));
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refused(encoder, {.width = 8, .height = 8}).find("'v.blk.0.ffn_down' is missing"), std::string::npos);
  encoder.numbers.erase("patch_size");
  EXPECT_NE(refused(encoder, {.width = 8, .height = 8}).find("'patch_size'"), std::string::npos);
  encoder.kind = "clairvoyant";
  EXPECT_FALSE(is_described(encoder));
  EXPECT_NE(refused(encoder, {.width = 8, .height = 8}).find("not described"), std::string::npos);
  EXPECT_NE(refused(tiny_images(64), {.width = 0, .height = 8}).find("1 x 0 x 8"), std::string::npos);
}

TEST(Encoder, AKindIsOfImagesOrOfSound) {
  Encoder encoder = tiny_images(64);
  EXPECT_TRUE(is_described(encoder));
  encoder.is_of_sound = true;
  EXPECT_FALSE(is_described(encoder));
}

}  // namespace
}  // namespace pshard
