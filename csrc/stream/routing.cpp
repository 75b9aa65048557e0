#include "stream/routing.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

namespace pshard {
namespace {

void group_by_expert(Routes& routes) {
  routes.rows.resize(routes.expert.size());
  std::iota(routes.rows.begin(), routes.rows.end(), 0);
  const auto expert_of = [&](int32_t row) { return routes.expert[static_cast<size_t>(row)]; };
  std::stable_sort(routes.rows.begin(), routes.rows.end(), [&](int32_t a, int32_t b) { return expert_of(a) < expert_of(b); });
  for (size_t i = 0; i < routes.rows.size(); ++i) {
    const int32_t expert = expert_of(routes.rows[i]);
    if (!routes.experts.empty() && routes.experts.back() == expert) continue;
    routes.experts.push_back(expert);
    routes.first.push_back(static_cast<int64_t>(i));
  }
  routes.first.push_back(static_cast<int64_t>(routes.rows.size()));
}

}  // namespace

Routes draw_routes(const RoutingRule& rule, int64_t n_tokens, int64_t n_expert, int64_t n_used, int64_t layer, int64_t pass) {
  if (n_used < 1 || n_used > n_expert) {
    throw std::invalid_argument(std::to_string(n_used) + " experts are used of " + std::to_string(n_expert) + "; it must be 1 to all");
  }
  if (!(rule.exponent >= 0.0 && rule.exponent <= 10.0)) {
    throw std::invalid_argument("the exponent of the routing is " + std::to_string(rule.exponent) + "; it must be 0 (uniform) to 10");
  }
  const auto of_layer = static_cast<uint64_t>(layer);
  std::mt19937_64 ranks(rule.seed * 1'000'003 + of_layer);
  std::vector<int32_t> by_rank(static_cast<size_t>(n_expert));
  std::iota(by_rank.begin(), by_rank.end(), 0);
  std::shuffle(by_rank.begin(), by_rank.end(), ranks);
  std::vector<double> mean_arrival(by_rank.size());
  for (size_t rank = 0; rank < by_rank.size(); ++rank) mean_arrival[rank] = std::pow(static_cast<double>(rank + 1), rule.exponent);
  std::mt19937_64 random((rule.seed * 1'000'003 + of_layer) * 1'000'003 + static_cast<uint64_t>(pass) + 1);

  Routes routes;
  routes.n_used = n_used;
  routes.expert.reserve(static_cast<size_t>(n_tokens * n_used));
  // Exponential arrivals at the experts' rates: the first n are n draws without replacement (Efraimidis and Spirakis, 2006).
  std::exponential_distribution<double> arrival(1.0);
  std::vector<std::pair<double, int32_t>> arrivals(by_rank.size());
  for (int64_t token = 0; token < n_tokens; ++token) {
    for (size_t rank = 0; rank < by_rank.size(); ++rank) arrivals[rank] = {arrival(random) * mean_arrival[rank], by_rank[rank]};
    std::partial_sort(arrivals.begin(), arrivals.begin() + n_used, arrivals.end());
    for (int64_t i = 0; i < n_used; ++i) routes.expert.push_back(arrivals[static_cast<size_t>(i)].second);
  }
  group_by_expert(routes);
  return routes;
}

std::vector<std::pair<int64_t, int64_t>> runs_of(const Routes& routes) {
  std::vector<std::pair<int64_t, int64_t>> runs;
  for (const int32_t expert : routes.experts) {
    if (!runs.empty() && runs.back().first + runs.back().second == expert) {
      ++runs.back().second;
    } else {
      runs.emplace_back(expert, 1);
    }
  }
  return runs;
}

}  // namespace pshard
