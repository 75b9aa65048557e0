// Stands in for cuda_backend.cu where pshard is built without CUDA.
#include "stream/cuda_backend.hpp"

namespace pshard {

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions&) {
  throw StreamError("this pshard was built without CUDA; build it with nvcc, or run on the host's threads (--backend host)");
}

}  // namespace pshard
