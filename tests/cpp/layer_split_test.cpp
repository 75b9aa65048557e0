#include "model/layer_split.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

namespace pshard {
namespace {

// Layers (and the output) that each GPU has, then those of the host.
std::vector<int64_t> counts(const std::vector<Where>& places, int n_gpu) {
  std::vector<int64_t> result;
  for (int gpu = 0; gpu < n_gpu; ++gpu) result.push_back(std::count(places.begin(), places.end(), pinned_on(gpu)));
  result.push_back(std::count(places.begin(), places.end(), Where::cpu));
  return result;
}

// What llama.cpp made of llama-3.1-8b: 32 layers and the output.
TEST(LayerPlaces, AreSharedOutLikeTheFreeMemory) {
  EXPECT_EQ(counts(layer_places(32, 99, {24576, 24576}), 2), std::vector<int64_t>({17, 16, 0}));
  EXPECT_EQ(counts(layer_places(32, 99, {24576, 12288}), 2), std::vector<int64_t>({22, 11, 0}));
  EXPECT_EQ(counts(layer_places(32, -1, {1, 1, 1, 1}), 4), std::vector<int64_t>({9, 8, 8, 8, 0}));
}

TEST(LayerPlaces, GoToTheGpusFromTheBackInOneRunEach) {
  const std::vector<Where> places = layer_places(28, 14, {24576, 12288});
  ASSERT_EQ(places.size(), 29U);
  EXPECT_EQ(counts(places, 2), std::vector<int64_t>({10, 4, 15}));
  EXPECT_EQ(places[14], Where::cpu);
  EXPECT_EQ(places[15], Where::pinned);
  EXPECT_EQ(places[24], Where::pinned);
  EXPECT_EQ(places[25], pinned_on(1));
  EXPECT_EQ(places.back(), pinned_on(1));
}

TEST(LayerPlaces, OfAGpuWithoutAShareAreNone) {
  EXPECT_EQ(counts(layer_places(10, -1, {1, 0, 1}), 3), std::vector<int64_t>({6, 0, 5, 0}));
  EXPECT_EQ(counts(layer_places(10, -1, {}), 0), std::vector<int64_t>({11}));
  EXPECT_EQ(counts(layer_places(10, 0, {1}), 1), std::vector<int64_t>({0, 11}));
}

TEST(LayerPlaces, RefuseImpossibleShares) {
  EXPECT_THROW(static_cast<void>(layer_places(10, -1, {0, 0})), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(layer_places(10, -1, {1, -1})), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(layer_places(10, -1, std::vector<double>(16, 1.0))), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
