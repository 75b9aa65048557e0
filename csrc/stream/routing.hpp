// Which experts each token is routed to: drawn from a stated distribution, the same for the same seed.
#pragma once

#include <cstdint>
#include <vector>

namespace pshard {

// The probability of the expert of rank r is proportional to 1 / (r + 1)^exponent; 0 is uniform. Ranks are dealt out anew for each layer.
struct RoutingRule {
  double exponent = 0.0;
  uint64_t seed = 1;
};

// The routes of one layer in one pass. `row` numbers (token, used) pairs: token * n_used + used.
struct Routes {
  int64_t n_used = 1;
  std::vector<int32_t> expert;  // by row; different ones for each token
  // The same rows sorted by expert: those of `experts[i]` are rows[first[i]] to rows[first[i + 1] - 1].
  std::vector<int32_t> experts;
  std::vector<int64_t> first;
  std::vector<int32_t> rows;
};

// Throws std::invalid_argument, naming the figure, where it cannot be drawn.
[[nodiscard]] Routes draw_routes(const RoutingRule& rule, int64_t n_tokens, int64_t n_expert, int64_t n_used, int64_t layer, int64_t pass);

// Runs of experts that lie side by side: pairs of the first and how many.
[[nodiscard]] std::vector<std::pair<int64_t, int64_t>> runs_of(const Routes& routes);

}  // namespace pshard
