// What GPU kernels should give, in double precision and by other code than theirs. All pointers are the host's; a fault says which output
// is wrong, "" that none is. `n_samples` outputs are looked at: all, where there are no more.
#pragma once

#include <string>
#include <vector>

#include "probe/gpu_kernels.hpp"

namespace pshard {

// An output, and the sum of the magnitudes that it was summed from.
struct Expected {
  double sum = 0.0;
  double magnitude = 0.0;
};
[[nodiscard]] Expected expected_of_product(const GpuProduct& shape, const uint8_t* weights, const float* x, int64_t index);
[[nodiscard]] Expected expected_of_experts(const GpuExperts& shape, const uint8_t* weights, const int32_t* ids, const float* x,
                                           int64_t index);
[[nodiscard]] Expected expected_of_attention(const AttentionShape& shape, bool is_causal, const float* queries, const uint16_t* keys,
                                             const uint16_t* values, int64_t index);

[[nodiscard]] std::string fault_of_product(const GpuProduct& shape, const uint8_t* weights, const float* x, const float* y,
                                           int64_t n_samples);

[[nodiscard]] std::string fault_of_experts(const GpuExperts& shape, const uint8_t* weights, const int32_t* ids, const float* x,
                                           const float* y, int64_t n_samples);

[[nodiscard]] std::string fault_of_attention(const AttentionShape& shape, bool is_causal, const float* queries, const uint16_t* keys,
                                             const uint16_t* values, const float* out, int64_t n_samples);

// Experts for each token, different ones: [batch][n_used].
[[nodiscard]] std::vector<int32_t> random_experts(const GpuExperts& shape, uint64_t seed);

}  // namespace pshard
