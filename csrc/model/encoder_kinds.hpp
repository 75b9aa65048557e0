// The kinds of encoders that are described, file by file.
#pragma once

#include <span>
#include <string_view>

#include "model/encoder_graph.hpp"

namespace pshard {

struct EncoderKind {
  std::string_view name;
  Node (*describe)(EncoderGraph& g) = nullptr;  // writes one pass down and returns its result
};

[[nodiscard]] std::span<const EncoderKind> kinds_of_images();          // with a table of positions
[[nodiscard]] std::span<const EncoderKind> kinds_of_rotated_images();  // without
[[nodiscard]] std::span<const EncoderKind> kinds_of_grouped_images();  // patches in groups of 2 x 2
[[nodiscard]] std::span<const EncoderKind> kinds_of_queries();         // images that queries sum up
[[nodiscard]] std::span<const EncoderKind> kinds_of_convolutions();    // images, too
[[nodiscard]] std::span<const EncoderKind> kinds_of_sound();
[[nodiscard]] std::span<const EncoderKind> kinds_of_conformers();  // sound, too
[[nodiscard]] std::span<const EncoderKind> kinds_of_voices();      // and so are these

}  // namespace pshard
