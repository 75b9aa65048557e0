// What checking mode compares. All throw StreamError with what is wrong.
#pragma once

#include <cstdint>
#include <string>

#include "stream/backend.hpp"

namespace pshard {

void check_shard(const std::string& what, const uint8_t* arrived, int64_t n_bytes, uint64_t expected);

// Samples of y against sums in double precision of the weights as `source` has them. Both backends round activations to 8 bits or more:
// what that can change is far below what another weight would. `shown` is y as the backend orders it.
void check_product(const std::string& what, const Product& product, const uint8_t* source, const float* x, const float* shown,
                   const Backend& backend);

}  // namespace pshard
