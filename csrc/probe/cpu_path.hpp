// Which vector instructions the CPU kernels use. Chosen at run time, so that one wheel serves every CPU; a path can be forced by tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pshard {

enum class CpuPath : uint8_t {
  scalar,
  avx2,    // with FMA and F16C
  avx512,  // F, BW, DQ, VL and VNNI
};

// From the plainest to the fastest that this build holds and this CPU runs.
[[nodiscard]] const std::vector<CpuPath>& cpu_paths();

[[nodiscard]] std::string name_of(CpuPath path);

// By name; "" is the fastest. Throws std::invalid_argument for an unknown one, and where the CPU cannot run it.
[[nodiscard]] CpuPath cpu_path(const std::string& name);

}  // namespace pshard
