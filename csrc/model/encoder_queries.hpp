// Queries that sum up what an encoder has seen.
#pragma once

#include <string>

#include "model/encoder_graph.hpp"

namespace pshard {

// One layer of a Q-Former: `queries`[n, queries, windows] look at each other, then at what is `seen` in their window. Tensors' names begin
// with `layer`.
[[nodiscard]] Node query_former(EncoderGraph& g, const std::string& layer, Node queries, Node seen, int64_t n_head);

}  // namespace pshard
