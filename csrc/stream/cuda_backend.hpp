// The backend of a real GPU: a compute stream, a copy stream per lane, events, page-locked memory. Splits of the CPU run on its cores.
#pragma once

#include <memory>
#include <vector>

#include "probe/cpu_path.hpp"
#include "stream/backend.hpp"

namespace pshard {

struct CudaBackendOptions {
  std::vector<int> host_cpus;        // of the splits that the CPU computes
  std::vector<int64_t> arena_bytes;  // by GPU, in the order of the CUDA runtime
  int64_t page_lock_bytes = 0;       // at most so much is page-locked
  CpuPath path{};
};

// Throws StreamError where pshard is built without CUDA, a GPU is not there, or its memory is refused.
[[nodiscard]] std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options);

}  // namespace pshard
