#include "probe/devices.hpp"
#include "probe/gpu.hpp"

namespace pshard {

bool built_with_cuda() { return false; }

GpuQuery query_gpus() { return {{}, "built without CUDA"}; }

std::unique_ptr<Gpu> open_gpu(int /*index*/) { throw GpuError("pshard was built without CUDA; build it with PSHARD_CUDA=ON to use a GPU"); }

}  // namespace pshard
