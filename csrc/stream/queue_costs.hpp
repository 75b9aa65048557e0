// What queues themselves cost, measured with the executor's own: starting an operation, and going on with the work of another queue.
#pragma once

#include "stream/host_backend.hpp"

namespace pshard {

struct QueueCosts {
  double op_seconds = 0.0;       // from one operation to the next on one queue
  double handoff_seconds = 0.0;  // from the end of work on one queue to the start on another that waits for it
};

// Medians of a few runs, on GPU 0 and the host.
[[nodiscard]] QueueCosts queue_costs(HostBackend& backend);

}  // namespace pshard
