// What layers have in common that share a block: see ComputeBuffers.
#pragma once

#include <cstdint>

namespace pshard {

struct BlockKey {
  int32_t layer_class = 0;
  int32_t loads_for = -1;   // class of the layer whose state it loads
  int32_t passes_for = -1;  // or passes on
  bool is_last = false;
  bool loads_own_state = false;
  int64_t embeddings_part = 0;
  bool passes_selection = false;
  bool operator==(const BlockKey&) const = default;
};

}  // namespace pshard
