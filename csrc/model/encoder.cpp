#include "model/encoder.hpp"

#include <algorithm>
#include <array>
#include <span>
#include <stdexcept>

#include "model/encoder_kinds.hpp"

namespace pshard {

namespace {

const EncoderKind* kind_of(const Encoder& encoder) {
  const std::array of_images{kinds_of_images(), kinds_of_rotated_images(), kinds_of_grouped_images(), kinds_of_queries(),
                             kinds_of_convolutions()};
  const std::array of_sound{kinds_of_sound(), kinds_of_conformers(), kinds_of_voices()};
  const std::span<const std::span<const EncoderKind>> files =
      encoder.is_of_sound ? std::span<const std::span<const EncoderKind>>(of_sound) : of_images;
  for (const std::span<const EncoderKind> kinds : files) {
    const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const EncoderKind& kind) { return kind.name == encoder.kind; });
    if (found != kinds.end()) return &*found;
  }
  return nullptr;
}

}  // namespace

bool is_described(const Encoder& encoder) { return kind_of(encoder) != nullptr; }

Block encoder_block(const Encoder& encoder, const EncoderInput& input) {
  const EncoderKind* kind = kind_of(encoder);
  if (kind == nullptr) throw std::invalid_argument("projector '" + encoder.kind + "': its forward pass is not described");
  if (input.width < 1 || input.height < 1 || input.n_images < 1) {
    throw std::invalid_argument("projector '" + encoder.kind + "': an input of " + std::to_string(input.n_images) + " x " +
                                std::to_string(input.width) + " x " + std::to_string(input.height) + "; each must be at least 1");
  }
  EncoderGraph g(encoder, input);
  g.in(Group::norms);
  const Node out = kind->describe(g);
  g.expand(out);
  g.block().residual_out = out;
  return g.take();
}

}  // namespace pshard
