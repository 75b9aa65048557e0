// Compute buffers of an encoder of images or sound: the replay of one block, all of whose weights are in one memory.
#pragma once

#include <cstdint>

#include "model/forward.hpp"

namespace pshard {

struct EncoderBuffers {
  int64_t gpu_bytes = 0;
  int64_t host_bytes = 0;      // what it is given, and what the GPU has no kernel for; without a GPU: everything
  int64_t output_bytes = 0;    // the embeddings that it makes
  bool attends_on_gpu = true;  // false: CUDA has no kernel for its fused attention, so that it would run on the host
};
[[nodiscard]] EncoderBuffers encoder_buffers(const Block& block, bool on_gpu);

}  // namespace pshard
