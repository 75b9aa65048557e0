#include "model/model.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pshard {
namespace {

const DataType kF32{0, 1, 4};
const DataType kF16{1, 1, 2};
const DataType kQ8{8, 32, 34};

Tensor tensor(std::string name, DataType type = kF32, std::array<int64_t, 4> shape = {32, 1, 1, 1}) {
  const int64_t n_bytes = type.row_bytes(shape[0]) * shape[1] * shape[2] * shape[3];
  return Tensor{std::move(name), type, shape, n_bytes};
}

Hyperparameters hyperparameters(int32_t n_layer, int32_t n_layer_nextn = 0) {
  Hyperparameters h;
  h.n_layer = n_layer;
  h.n_layer_nextn = n_layer_nextn;
  h.layers.resize(static_cast<size_t>(n_layer + n_layer_nextn));
  return h;
}

std::vector<Tensor> ends(bool tied) {
  std::vector<Tensor> tensors{tensor("token_embd.weight", kQ8, {32, 10, 1, 1}), tensor("output_norm.weight")};
  if (!tied) tensors.push_back(tensor("output.weight", kQ8, {32, 10, 1, 1}));
  return tensors;
}

std::vector<std::string> names(const std::vector<Tensor>& tensors) {
  std::vector<std::string> result;
  for (const Tensor& t : tensors) result.push_back(t.name);
  return result;
}

// CUDA scans states of 96, 128 and 256 with heads of a multiple of 16, and convolves multiples of 128 channels.
TEST(Model, KnowsWeightsThatNoGpuComputesWith) {
  const auto is_host_only = [](int64_t state, int64_t channels) {
    Hyperparameters h = hyperparameters(1);
    h.layers[0].mixer = Mixer::mamba2;
    h.ssm_state_size = state;
    h.ssm_inner_size = 1024;
    std::vector<Tensor> tensors = ends(false);
    tensors.push_back(tensor("blk.0.ssm_a", kF32, {1, 16, 1, 1}));
    tensors.push_back(tensor("blk.0.ssm_conv1d.weight", kF32, {4, channels, 1, 1}));
    const Model model(h, tensors);
    return std::pair(model.layers()[0].tensors[0].host_only, model.layers()[0].tensors[1].host_only);
  };
  EXPECT_EQ(is_host_only(128, 1280), std::pair(false, false));
  EXPECT_EQ(is_host_only(64, 1280), std::pair(true, false));
  EXPECT_EQ(is_host_only(128, 1200), std::pair(false, true));
}

TEST(Model, SortsTensorsIntoLayersHeadAndEmbedding) {
  std::vector<Tensor> tensors = ends(false);
  for (const char* name : {"blk.1.attn_q.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight", "rope_freqs.weight"}) {
    tensors.push_back(tensor(name));
  }
  const Model model(hyperparameters(2), tensors);
  EXPECT_EQ(names(model.layers()[0].tensors), (std::vector<std::string>{"blk.0.attn_k.weight", "blk.0.attn_q.weight"}));
  EXPECT_EQ(names(model.head()), (std::vector<std::string>{"output_norm.weight", "output.weight"}));
  EXPECT_EQ(names(model.embedding()), (std::vector<std::string>{"token_embd.weight", "rope_freqs.weight"}));
  EXPECT_FALSE(model.tied_head());
}

TEST(Model, TiedHeadHoldsACopyOfTheEmbedding) {
  std::vector<Tensor> tensors = ends(true);
  tensors.push_back(tensor("blk.0.attn_q.weight"));
  const Model model(hyperparameters(1), tensors);
  EXPECT_TRUE(model.tied_head());
  EXPECT_EQ(names(model.head()), (std::vector<std::string>{"output_norm.weight", "token_embd.weight"}));
  EXPECT_EQ(model.head()[1].n_bytes, 340);
  EXPECT_EQ(names(model.embedding()), (std::vector<std::string>{"token_embd.weight"}));
}

TEST(Model, EncoderNeedsNoHead) {
  Hyperparameters h = hyperparameters(1);
  h.traits.causal = h.traits.predicts = h.traits.loads_head = false;
  const Model model(h, {tensor("token_embd.weight"), tensor("token_embd_norm.weight"), tensor("blk.0.attn_q.weight")});
  EXPECT_FALSE(model.tied_head());
  EXPECT_TRUE(model.head().empty());
  EXPECT_EQ(model.embedding().size(), 2u);
}

TEST(Model, LeavesNextTokenLayersOut) {
  std::vector<Tensor> tensors = ends(false);
  for (const char* name : {"blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.1.nextn.eh_proj.weight"}) tensors.push_back(tensor(name));
  const Model model(hyperparameters(1, 1), tensors);
  ASSERT_EQ(model.layers().size(), 1u);
  EXPECT_EQ(model.layers()[0].tensors.size(), 1u);
}

TEST(Model, EqualLayersShareAClassInAnyOrderOfTheFile) {
  std::vector<Tensor> tensors = ends(false);
  tensors.push_back(tensor("blk.0.attn_q.weight"));
  tensors.push_back(tensor("blk.0.ffn_up.weight", kQ8));
  tensors.push_back(tensor("blk.1.ffn_up.weight", kQ8));
  tensors.push_back(tensor("blk.1.attn_q.weight"));
  tensors.push_back(tensor("blk.2.attn_q.weight"));
  tensors.push_back(tensor("blk.2.ffn_up.weight", kF16));  // another type
  tensors.push_back(tensor("blk.3.attn_q.weight"));
  tensors.push_back(tensor("blk.3.ffn_up.weight", kQ8, {64, 1, 1, 1}));  // another shape
  tensors.push_back(tensor("blk.4.attn_q.weight"));
  tensors.push_back(tensor("blk.4.ffn_up.weight", kQ8));
  Hyperparameters h = hyperparameters(5);
  h.layers[4].window = 128;  // other parameters
  const Model model(h, tensors);
  std::vector<int32_t> classes;
  for (const Layer& layer : model.layers()) classes.push_back(layer.layer_class);
  EXPECT_EQ(classes, (std::vector<int32_t>{0, 0, 1, 2, 3}));
  EXPECT_EQ(model.n_layer_classes(), 4);
}

TEST(Model, RefusesContradictions) {
  std::vector<Tensor> tensors = ends(false);
  tensors.push_back(tensor("blk.0.attn_q.weight"));
  EXPECT_NO_THROW(Model(hyperparameters(1), tensors));
  EXPECT_THROW(Model(hyperparameters(2), tensors), std::invalid_argument);  // layer 1 has no tensors
  EXPECT_THROW(Model(hyperparameters(0), tensors), std::invalid_argument);
  Hyperparameters h = hyperparameters(1);
  h.layers.clear();
  EXPECT_THROW(Model(h, tensors), std::invalid_argument);
  tensors.push_back(tensor("blk.1.attn_q.weight"));
  EXPECT_THROW(Model(hyperparameters(1), tensors), std::invalid_argument);                          // a layer too many
  EXPECT_THROW(Model(hyperparameters(1), {tensor("blk.0.attn_q.weight")}), std::invalid_argument);  // nothing to compute logits with
}

TEST(KvBytesPerCell, CountsWholeBlocksOfKAndV) {
  LayerParameters layer;
  layer.n_head_kv = 8;
  layer.head_dim_k = 128;
  layer.head_dim_v = 64;
  EXPECT_EQ(kv_bytes_per_cell(layer, kF16, kF16), 2 * 8 * (128 + 64));
  EXPECT_EQ(kv_bytes_per_cell(layer, kQ8, kF16), 8 * 128 / 32 * 34 + 2 * 8 * 64);
  layer.head_dim_v = 0;
  EXPECT_EQ(kv_bytes_per_cell(layer, kF16, kF16), 2 * 8 * 128);
}

TEST(StateBytes, AreFloats) {
  LayerParameters layer;
  layer.conv_state = 3;
  layer.scan_state = 5;
  EXPECT_EQ(state_bytes(layer), 32);
}

}  // namespace
}  // namespace pshard
