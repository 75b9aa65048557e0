#include "probe/devices.hpp"

namespace pshard {

bool built_with_cuda() { return false; }

GpuQuery query_gpus() { return {{}, "built without CUDA"}; }

}  // namespace pshard
