#include "model/layout.hpp"

namespace pshard {

Layout Layout::packed(std::array<int64_t, 4> ne, const DataType& type) {
  Layout layout{.type = type, .ne = ne, .nb = {}};
  layout.nb[0] = type.block_bytes;
  layout.nb[1] = type.row_bytes(ne[0]);
  layout.nb[2] = layout.nb[1] * ne[1];
  layout.nb[3] = layout.nb[2] * ne[2];
  return layout;
}

int64_t Layout::n_bytes() const {
  if (n_elements() == 0) return 0;
  const int64_t n_blocks = (ne[0] + type.block_elements - 1) / type.block_elements;
  int64_t n_bytes = type.block_elements == 1 ? type.block_bytes + (ne[0] - 1) * nb[0] : n_blocks * nb[0];
  for (size_t i = 1; i < ne.size(); ++i) n_bytes += (ne[i] - 1) * nb[i];
  return n_bytes;
}

}  // namespace pshard
