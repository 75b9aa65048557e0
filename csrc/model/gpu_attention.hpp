// Which attention CUDA has fused kernels for.
#pragma once

#include "model/model.hpp"

namespace pshard {

// Head sizes, and the wide ones only for so many query heads per key head (fattn.cu).
[[nodiscard]] bool gpu_attends(const LayerParameters& p, int64_t key_dim, int64_t value_dim);
// Caches of every type but IQ4_NL, indexers as well (lightning-indexer.cu).
[[nodiscard]] bool gpu_attends_to(const DataType& keys_or_values);

}  // namespace pshard
