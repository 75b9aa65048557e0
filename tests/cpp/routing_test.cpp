#include "stream/routing.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace pshard {
namespace {

TEST(Routing, EachTokenHasDifferentExpertsAndTheSameSeedTheSame) {
  const Routes routes = draw_routes({0.0, 7}, 100, 16, 4, 3, 5);
  ASSERT_EQ(routes.expert.size(), 400U);
  for (size_t token = 0; token < 100; ++token) {
    const std::set<int32_t> experts(routes.expert.begin() + static_cast<ptrdiff_t>(4 * token),
                                    routes.expert.begin() + static_cast<ptrdiff_t>(4 * token + 4));
    EXPECT_EQ(experts.size(), 4U);
    EXPECT_GE(*experts.begin(), 0);
    EXPECT_LT(*experts.rbegin(), 16);
  }
  EXPECT_EQ(draw_routes({0.0, 7}, 100, 16, 4, 3, 5).expert, routes.expert);
  EXPECT_NE(draw_routes({0.0, 8}, 100, 16, 4, 3, 5).expert, routes.expert);
  EXPECT_NE(draw_routes({0.0, 7}, 100, 16, 4, 2, 5).expert, routes.expert);
  EXPECT_NE(draw_routes({0.0, 7}, 100, 16, 4, 3, 6).expert, routes.expert);
}

TEST(Routing, RowsAreGroupedByExpert) {
  const Routes routes = draw_routes({1.0, 1}, 50, 8, 2, 0, 0);
  ASSERT_EQ(routes.first.size(), routes.experts.size() + 1);
  EXPECT_EQ(routes.first.back(), 100);
  std::set<int32_t> rows;
  for (size_t i = 0; i < routes.experts.size(); ++i) {
    for (int64_t at = routes.first[i]; at < routes.first[i + 1]; ++at) {
      const int32_t row = routes.rows[static_cast<size_t>(at)];
      EXPECT_EQ(routes.expert[static_cast<size_t>(row)], routes.experts[i]);
      rows.insert(row);
    }
  }
  EXPECT_EQ(rows.size(), 100U);
}

// A token uses each of 64 experts with the same probability under the uniform rule; under Zipf's, the first of 1 / (1 + 1/2 + ... + 1/64).
TEST(Routing, FollowsItsDistribution) {
  constexpr int kTokens = 20000;
  const auto most = [&](double exponent) {
    std::vector<int> counts(64, 0);
    for (const int32_t expert : draw_routes({exponent, 3}, kTokens, 64, 1, 0, 0).expert) ++counts[static_cast<size_t>(expert)];
    return *std::max_element(counts.begin(), counts.end()) / static_cast<double>(kTokens);
  };
  double harmonic = 0.0;
  for (int rank = 1; rank <= 64; ++rank) harmonic += 1.0 / rank;
  const auto sigma = [&](double p) { return std::sqrt(p * (1.0 - p) / kTokens); };
  EXPECT_NEAR(most(1.0), 1.0 / harmonic, 5 * sigma(1.0 / harmonic));
  EXPECT_NEAR(most(0.0), 1.0 / 64, 5 * sigma(1.0 / 64));
}

// With an exponent of 10 the first expert has all but a thousandth of the weight, the eighth a billionth.
TEST(Routing, SteepLawsDrawDifferentExpertsToo) {
  const Routes routes = draw_routes({10.0, 3}, 200, 128, 8, 0, 0);
  std::vector<int> tokens(128, 0);
  for (size_t token = 0; token < 200; ++token) {
    const auto begin = routes.expert.begin() + static_cast<ptrdiff_t>(8 * token);
    EXPECT_EQ(std::set<int32_t>(begin, begin + 8).size(), 8U);
    for (auto expert = begin; expert != begin + 8; ++expert) ++tokens[static_cast<size_t>(*expert)];
  }
  EXPECT_EQ(*std::max_element(tokens.begin(), tokens.end()), 200);
}

// Two draws without replacement of 8 experts: expert i is among them with probability w_i + sum over j != i of w_j w_i / (1 - w_j).
TEST(Routing, SeveralDrawsFollowTheLawWithoutReplacement) {
  constexpr int kTokens = 20000;
  std::vector<int> counts(8, 0);
  for (const int32_t expert : draw_routes({1.0, 3}, kTokens, 8, 2, 0, 0).expert) ++counts[static_cast<size_t>(expert)];
  std::sort(counts.rbegin(), counts.rend());
  std::vector<double> weights(8);
  double sum = 0.0;
  for (size_t i = 0; i < 8; ++i) sum += weights[i] = 1.0 / static_cast<double>(i + 1);
  for (double& weight : weights) weight /= sum;
  for (size_t i = 0; i < 8; ++i) {
    double p = weights[i];
    for (size_t j = 0; j < 8; ++j) p += j == i ? 0.0 : weights[j] * weights[i] / (1.0 - weights[j]);
    EXPECT_NEAR(counts[i] / static_cast<double>(kTokens), p, 5 * std::sqrt(p * (1.0 - p) / kTokens)) << i;
  }
}

TEST(Routing, RunsJoinNeighbours) {
  Routes routes;
  routes.experts = {0, 1, 4, 6, 7, 8};
  EXPECT_EQ(runs_of(routes), (std::vector<std::pair<int64_t, int64_t>>{{0, 2}, {4, 1}, {6, 3}}));
}

TEST(Routing, RefusesWhatCannotBeDrawn) {
  EXPECT_THROW(static_cast<void>(draw_routes({0.0, 1}, 1, 4, 5, 0, 0)), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(draw_routes({0.0, 1}, 1, 4, 0, 0, 0)), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(draw_routes({-1.0, 1}, 1, 4, 1, 0, 0)), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
