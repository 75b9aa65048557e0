// Failed calls of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "probe/gpu_kernels.hpp"

namespace pshard {

// Throws GpuError where `error` is one. `call` names what was called.
inline void require(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // so that the next caller does not find it
  throw GpuError(std::string(call) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

}  // namespace pshard
