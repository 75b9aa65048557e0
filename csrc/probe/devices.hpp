// The GPUs of this machine, as their driver describes them; and, where there is none, why. devices_cuda.cu asks the CUDA runtime,
// no_cuda.cpp stands in where pshard was built without it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pshard {

// A field that the driver does not tell is 0.
struct GpuDevice {
  std::string name;
  std::string pci_bus_id;  // "0000:01:00.0", the key under which the operating system and NVML know the device
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
  int32_t compute_major = 0;
  int32_t compute_minor = 0;
  int32_t multiprocessors = 0;
  int32_t copy_engines = 0;
  int32_t memory_bus_bits = 0;
  int64_t memory_clock_hertz = 0;
};

struct GpuQuery {
  std::vector<GpuDevice> devices;  // in the order of the CUDA runtime
  std::string reason;              // why `devices` is empty; empty where it is not
};

[[nodiscard]] bool built_with_cuda();

// Why the CUDA runtime refuses a driver. Versions are numbered as CUDA does (12040 is 12.4); `driver` is 0 where there is none.
[[nodiscard]] std::string driver_reason(int driver, int needed);

// Never throws for want of a GPU: an absent driver or device is an answer. Asking for free memory opens a context on each device: some
// hundred milliseconds and a few hundred MiB of its memory, which the context gives back when the process ends.
[[nodiscard]] GpuQuery query_gpus();

}  // namespace pshard
