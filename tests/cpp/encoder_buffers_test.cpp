#include "memory/encoder_buffers.hpp"

#include <gtest/gtest.h>

#include "tiny_encoder.hpp"

namespace pshard {
namespace {

constexpr int64_t kFrames = 8 * 640 * 4;

EncoderBuffers buffers(const Encoder& encoder, const EncoderInput& input, bool on_gpu) {
  return encoder_buffers(encoder_block(encoder, input), on_gpu);
}

// The input's copy, and behind it the same with its axes swapped, which is normed in place; the projection fits where the copy was.
TEST(EncoderBuffers, HoldTheInputAndWhatIsMadeOfIt) {
  const EncoderInput input{.width = 8, .height = 640};
  const EncoderBuffers on_gpu = buffers(tiny_sound(), input, true);
  EXPECT_EQ(on_gpu.gpu_bytes, 2 * kFrames);
  EXPECT_EQ(on_gpu.host_bytes, kFrames);
  EXPECT_EQ(on_gpu.output_bytes, 8 * 32 * 4);
  const EncoderBuffers on_host = buffers(tiny_sound(), input, false);
  EXPECT_EQ(on_host.gpu_bytes, 0);
  EXPECT_EQ(on_host.host_bytes, 2 * kFrames);
}

TEST(EncoderBuffers, AttentionThatAGpuCannotFuseRunsOnTheHost) {
  const EncoderInput input{.width = 8, .height = 8};
  const EncoderBuffers fused = buffers(tiny_images(64), input, true);
  EXPECT_TRUE(fused.attends_on_gpu);
  EXPECT_EQ(fused.host_bytes, 8 * 8 * 3 * 4);
  const EncoderBuffers odd = buffers(tiny_images(60), input, true);
  EXPECT_FALSE(odd.attends_on_gpu);
  // Queries as f32, keys and values as f16, and the result.
  EXPECT_EQ(odd.host_bytes, 4 * 120 * (4 + 2 + 2 + 4));
}

TEST(EncoderBuffers, ImagesThatAreEncodedTogetherTakeAsMuchEach) {
  const auto bytes = [](int64_t n_images) { return buffers(tiny_images(64), {.width = 8, .height = 8, .n_images = n_images}, true); };
  EXPECT_EQ(bytes(3).host_bytes, 3 * bytes(1).host_bytes);
  EXPECT_EQ(bytes(3).gpu_bytes, 3 * bytes(1).gpu_bytes);
}

}  // namespace
}  // namespace pshard
