// The vendor's library for products of matrices, found when the program runs: nothing links it, and what it declares is declared here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "probe/gpu_kernels.hpp"

namespace pshard {

class Cublas {
 public:
  // For the device that is current. Throws GpuError, with what was looked for, where there is no library.
  Cublas();
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // y[batch][n_rows] = x[batch][n_columns] times the transposed weights[n_rows][n_columns], of halves, summed in 32 bits.
  void multiply(GpuStream stream, int64_t n_rows, int64_t n_columns, int64_t batch, const uint16_t* weights, const uint16_t* x, float* y);

 private:
  struct Functions;
  std::unique_ptr<Functions> functions_;
  void* handle_ = nullptr;
  std::optional<GpuStream> stream_;  // of the handle
};

}  // namespace pshard
