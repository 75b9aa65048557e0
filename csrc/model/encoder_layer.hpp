// The transformer layers of encoders of images and sound: how those of one kind differ from the plain ones.
#pragma once

#include <functional>
#include <string_view>

#include "model/graph_writer.hpp"

namespace pshard {

enum class NormKind : uint8_t { layer, rms };

struct LayerStyle {
  NormKind norm = NormKind::layer;
  int activations = 1;                 // operations of an activation without gate (a squared ReLU: 2)
  std::function<Node(Node)> rotate{};  // of queries and keys, by position
  bool norms_values = false;
  std::function<Node(int64_t)> mask{};            // of a layer, by index; kNoValue: it sees everything
  std::string_view sinks{};                       // tensor of masked layers
  std::string_view post_norm{};                   // behind the layers; by default "v.post_ln" or "a.post_ln"
  bool reshapes_attention = false;                // its result is a view in the shape of what the layer is given
  std::function<void(int64_t, Node)> attended{};  // is told what a layer has between attention and FFN
};

}  // namespace pshard
