#include "model/gpu_attention.hpp"

#include <algorithm>

namespace pshard {

bool gpu_attends(const LayerParameters& p, int64_t key_dim, int64_t value_dim) {
  const int64_t queries_per_key = p.n_head / std::max<int64_t>(p.n_head_kv, 1);
  const bool shares_keys = queries_per_key >= 2;
  switch (key_dim) {
    case 40:
    case 64:
    case 72:
    case 80:
    case 96:
    case 112:
    case 128:
    case 256:
      return value_dim == key_dim;
    case 192:
      return value_dim == 128 && shares_keys && queries_per_key % 8 == 0;
    case 320:
      return value_dim == 256 && shares_keys && queries_per_key % 32 == 0;
    case 512:
      return value_dim == 512 && shares_keys;
    case 576:
      return value_dim == 512 && shares_keys;
    default:
      return false;
  }
}

bool gpu_attends_to(const DataType& keys_or_values) {
  constexpr int32_t kIq4Nl = 20;
  return keys_or_values.id != kIq4Nl;
}

}  // namespace pshard
