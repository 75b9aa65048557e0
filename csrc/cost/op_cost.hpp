// Seconds of one operation on one processor: a measured or referenced rate, never faster than the processor's peaks.
#pragma once

#include <algorithm>

#include "machine/machine.hpp"
#include "model/forward.hpp"

namespace pshard {

// Seconds with the half-width of their range and the least trustworthy figure that went into them.
struct Cost {
  double seconds = 0.0;
  double spread_seconds = 0.0;
  Basis basis = Basis::measured;

  Cost& operator+=(const Cost& other) {
    seconds += other.seconds;
    spread_seconds += other.spread_seconds;
    basis = std::max(basis, other.basis);
    return *this;
  }
};

// Share of a layer's experts that at least one of `n_tokens` tokens is routed to, 1 - (1 - used/experts)^tokens: routes are taken as
// independent and uniform (reference: pipelined-sharding predictor, later version). 1 for a dense product.
[[nodiscard]] double distinct_expert_share(int64_t n_expert, int64_t n_expert_used, double n_tokens);

// Bytes of the operation's weight that are read: the whole tensor, or its distinct experts.
[[nodiscard]] double weight_bytes_read(const Operation& operation, int64_t n_expert, int64_t n_expert_used);

// Rows of activations that one operation multiplies, as llama.cpp's op-offload counts them (tokens for routed experts).
[[nodiscard]] double activation_rows(const Operation& operation, int64_t n_expert_used);

// Cost of `operation` on `processor`:
//   products      max(FLOP / series rate at the batch, all bytes / memory peak, FLOP / compute peak)
//   attention     max(FLOP / attention rate at the query tokens + cache bytes / rate of first reads, cache bytes / memory rate), of the
//                 cells that are not masked; of a single query's of those that the thread with most of them has, times the threads, where
//                 they are dealt. Over keys and values of two types the mean of both
//   scans         max(FLOP / scan rate at the tokens of a sequence, bytes / memory rate), where that kind was measured
//   the rest      bytes / memory rate
// plus one launch. `is_copied`: the weight was copied to the processor a moment ago. A view costs nothing. Throws std::invalid_argument for
// a product whose weight type has no series.
[[nodiscard]] Cost operation_cost(const Operation& operation, const Processor& processor, int64_t n_expert, int64_t n_expert_used,
                                  double n_query_tokens, bool is_copied = false);

// The same of an operation that goes on in the kernel of the one before.
[[nodiscard]] Cost without_launch(const Cost& cost, const Processor& processor);

}  // namespace pshard
