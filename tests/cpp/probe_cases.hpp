// What tests of the probes share.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <string>
#include <vector>

#include "probe/cpu_path.hpp"

namespace pshard {

// CPUs for a pool of `n` workers: those of this process, over again where it has fewer.
inline std::vector<int> test_cpus(int n) {
  std::vector<int> allowed;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) allowed.push_back(cpu);
    }
  }
#endif
  if (allowed.empty()) allowed.push_back(0);
  std::vector<int> cpus;
  for (std::size_t i = 0; cpus.size() < static_cast<std::size_t>(n); ++i) cpus.push_back(allowed[i % allowed.size()]);
  return cpus;
}

}  // namespace pshard
