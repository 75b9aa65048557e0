// Sequential reads of a file past the cache of the operating system, for models that are larger than memory.
#pragma once

#include <string>

#include "probe/cpu_probe.hpp"

namespace pshard {

// One sample reads the next `chunk_bytes` of the first `n_bytes` of a file, with O_DIRECT where the file system has it, else after telling
// the operating system to drop those pages; the note says which. Throws ProbeError where the file cannot be read, is
// shorter, or gives other bytes when it is read again.
ProbeResult probe_storage(const std::string& path, int64_t n_bytes, int64_t chunk_bytes, const Policy& policy,
                          const Timer& timer = steady_timer());

}  // namespace pshard
