#include "model/layer_split.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace pshard {

namespace {

// Ends of the GPUs' shares of the whole, in single precision like llama.cpp: a layer on a border falls where rounding puts it.
std::vector<float> share_ends(const std::vector<double>& shares) {
  if (shares.size() > kMaxGpus) {
    throw std::invalid_argument(std::to_string(shares.size()) + " GPUs; llama.cpp takes at most " + std::to_string(kMaxGpus));
  }
  std::vector<float> ends;
  float sum = 0.0F;
  for (const double share : shares) {
    if (!(share >= 0.0))
      throw std::invalid_argument("a GPU's share of the layers is " + std::to_string(share) + "; it must not be negative");
    sum += static_cast<float>(share);
    ends.push_back(sum);
  }
  if (!shares.empty() && !(sum > 0.0F)) throw std::invalid_argument("every GPU's share of the layers is 0; give at least one a share");
  for (float& end : ends) end /= sum;
  return ends;
}

}  // namespace

std::vector<Where> layer_places(int32_t n_layer, int32_t n_gpu_layers, const std::vector<double>& shares) {
  const std::vector<float> ends = share_ends(shares);
  const int32_t n_all = n_layer + 1;
  const int32_t n_on_gpu = n_gpu_layers < 0 ? n_all : std::min(n_gpu_layers, n_all);
  std::vector<Where> places(static_cast<size_t>(n_all), Where::cpu);
  if (shares.empty()) return places;
  for (int32_t i = 0; i < n_on_gpu; ++i) {
    const auto end = std::upper_bound(ends.begin(), ends.end(), static_cast<float>(i) / static_cast<float>(n_on_gpu));
    places[static_cast<size_t>(n_all - n_on_gpu + i)] = pinned_on(static_cast<int>(end - ends.begin()));
  }
  return places;
}

}  // namespace pshard
