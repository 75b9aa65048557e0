// Encoders of images and sound, as a projector's file (--mmproj) brings them: one forward pass for each kind that is described, with the
// projection to the language model's embeddings. Kinds are llama.cpp's (tools/mtmd, 0c1e57098).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/forward.hpp"

namespace pshard {

struct Encoder {
  std::string kind;  // "gemma3", "qwen2.5vl_merger", ...
  bool is_of_sound = false;
  // What the file's metadata says in whole numbers, by key, without "clip.vision." or "clip.audio.".
  std::map<std::string, std::vector<int64_t>, std::less<>> numbers;
  std::vector<Tensor> tensors;
};

// What one pass encodes: images of so many pixels, or sound of so many frames (`width`) in so many frequency bands (`height`).
struct EncoderInput {
  int64_t width = 0;
  int64_t height = 0;
  int64_t n_images = 1;
  int64_t tile_columns = 0;  // of an image that comes in tiles, one above the other, the whole of it first (Granite 4)
  bool flash_attn = true;
};

[[nodiscard]] bool is_described(const Encoder& encoder);
// The block's residual is its result; the encoder must outlive it. Throws std::invalid_argument for a kind that is not described, and where
// a tensor or a number is missing.
[[nodiscard]] Block encoder_block(const Encoder& encoder, const EncoderInput& input);

}  // namespace pshard
