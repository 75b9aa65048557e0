#include "probe/cpu_path.hpp"

#include <algorithm>
#include <stdexcept>

namespace pshard {

const std::vector<CpuPath>& cpu_paths() {
  static const std::vector<CpuPath> paths = [] {
    std::vector<CpuPath> found{CpuPath::scalar};
#if defined(PSHARD_X86_KERNELS)
    __builtin_cpu_init();  // the answers below cover what the operating system saves, too
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (avx2) found.push_back(CpuPath::avx2);
    if (avx2 && avx512) found.push_back(CpuPath::avx512);
#endif
    return found;
  }();
  return paths;
}

std::string name_of(CpuPath path) {
  switch (path) {
    case CpuPath::scalar:
      return "scalar";
    case CpuPath::avx2:
      return "avx2";
    case CpuPath::avx512:
      return "avx512";
  }
  throw std::invalid_argument("no such CPU path");
}

CpuPath cpu_path(const std::string& name) {
  const std::vector<CpuPath>& paths = cpu_paths();
  if (name.empty()) return paths.back();
  const auto found = std::find_if(paths.begin(), paths.end(), [&](CpuPath path) { return name_of(path) == name; });
  if (found != paths.end()) return *found;
  std::string known;
  for (const CpuPath path : paths) known += (known.empty() ? "" : ", ") + name_of(path);
  throw std::invalid_argument("path is '" + name + "', this CPU and build run " + known);
}

}  // namespace pshard
