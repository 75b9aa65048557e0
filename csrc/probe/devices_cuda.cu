#include <cuda_runtime_api.h>

#include "probe/devices.hpp"

namespace pshard {
namespace {

// A missing driver and one that is older than the toolkit give the same error code; the driver's version tells them apart.
std::string reason_for(cudaError_t error) {
  if (error == cudaErrorNoDevice) return "no device";
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    static_cast<void>(cudaDriverGetVersion(&driver));  // leaves 0 where there is no driver
    return driver_reason(driver, CUDART_VERSION);
  }
  return std::string("the CUDA runtime says: ") + cudaGetErrorString(error);
}

int32_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

GpuDevice describe(int index) {
  GpuDevice device;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) == cudaSuccess) {
    device.name = properties.name;
    device.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  }
  char pci_bus_id[32] = {};
  if (cudaDeviceGetPCIBusId(pci_bus_id, sizeof pci_bus_id, index) == cudaSuccess) device.pci_bus_id = pci_bus_id;
  device.compute_major = attribute(cudaDevAttrComputeCapabilityMajor, index);
  device.compute_minor = attribute(cudaDevAttrComputeCapabilityMinor, index);
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  device.copy_engines = attribute(cudaDevAttrAsyncEngineCount, index);
  device.memory_bus_bits = attribute(cudaDevAttrGlobalMemoryBusWidth, index);
  device.memory_clock_hertz = int64_t{1000} * attribute(cudaDevAttrMemoryClockRate, index);
  std::size_t free = 0;
  std::size_t total = 0;
  if (cudaSetDevice(index) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess) {
    device.free_bytes = static_cast<int64_t>(free);
  }
  return device;
}

}  // namespace

bool built_with_cuda() { return true; }

GpuQuery query_gpus() {
  GpuQuery query;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    query.reason = reason_for(error);
    return query;
  }
  int before = 0;
  const bool had_device = cudaGetDevice(&before) == cudaSuccess;
  for (int index = 0; index < count; ++index) query.devices.push_back(describe(index));
  if (had_device) static_cast<void>(cudaSetDevice(before));
  // Errors of single questions are answered by zeros; none is left for the next caller to find.
  static_cast<void>(cudaGetLastError());
  if (query.devices.empty()) query.reason = "no device";
  return query;
}

}  // namespace pshard
