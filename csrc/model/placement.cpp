#include "model/placement.hpp"

#include <stdexcept>

namespace pshard {

namespace {

void check_gpu(Where where, int n_gpu) {
  if (where == Where::cpu || gpu_of(where) < n_gpu) return;
  throw std::invalid_argument("the placement uses GPU " + std::to_string(gpu_of(where)) + ", but has " + std::to_string(n_gpu) +
                              " of them; count them from 0, or raise n_gpu");
}

}  // namespace

std::vector<TensorException> exceptions_of(const Placement& placement, size_t layer, bool has_encoder) {
  std::vector<TensorException> result;
  for (const TensorException& exception : placement.exceptions) {
    const int32_t of = layer_of(exception.name);
    if (of >= 0 && (static_cast<size_t>(of) != layer || (has_encoder && is_of_encoder(exception.name)))) continue;
    result.push_back({.name = std::string(local_name(exception.name)), .where = exception.where});
  }
  return result;
}

void check(const Placement& placement, size_t n_layer) {
  if (placement.layer_pattern.size() != n_layer) {
    throw std::invalid_argument("the placement has " + std::to_string(placement.layer_pattern.size()) + " layers, the model " +
                                std::to_string(n_layer) + "; give one layer_pattern entry for each layer of the model");
  }
  for (size_t i = 0; i < n_layer; ++i) {
    if (placement.layer_pattern[i] < placement.patterns.size()) continue;
    throw std::invalid_argument("layer_pattern[" + std::to_string(i) + "] is " + std::to_string(placement.layer_pattern[i]) +
                                ", but the placement has " + std::to_string(placement.patterns.size()) +
                                " patterns; count them from 0, or add the pattern");
  }
  if (placement.n_gpu < 0 || placement.n_gpu > kMaxGpus) {
    throw std::invalid_argument("the placement has " + std::to_string(placement.n_gpu) + " GPUs; llama.cpp takes 0 to " +
                                std::to_string(kMaxGpus));
  }
  if (placement.op_offload && placement.n_gpu == 0) {
    throw std::invalid_argument("the placement has op_offload, but no GPU that operations could go to; leave it off");
  }
  check_gpu(placement.head, placement.n_gpu);
  for (const TensorException& exception : placement.exceptions) check_gpu(exception.where, placement.n_gpu);
  for (const uint8_t pattern : placement.layer_pattern) {
    for (const Where where : placement.patterns[pattern].group) check_gpu(where, placement.n_gpu);
  }
}

}  // namespace pshard
