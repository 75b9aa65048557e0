// Kinds of operations.
#pragma once

#include <cstdint>

namespace pshard {

enum class OpKind : uint8_t {
  mul_mat,       // weight x activation
  mul_mat_id,    // routed experts
  attention,     // fused attention over the cache
  attention_kq,  // unfused: K x Q, and the weights x V
  get_rows,
  elementwise,  // norms, activations, additions, rope, soft-max, routing arithmetic
  copy,         // into the cache, or to make contiguous
  scan,         // recurrent scan or convolution
};

// Of a scan over tokens that changes a state, how it does; none for convolutions and for recurrences that are priced by their bytes.
enum class Recurrence : uint8_t { none, mamba, mamba2, delta_net };

// Of element-wise work, convolutions and writes into the cache: what a GPU may do in one kernel with its neighbours.
enum class Step : uint8_t { other, rms_norm, scale, multiply, add, rope, gate, activate, convolve, write };

}  // namespace pshard
