// Which operations a GPU computes in one kernel. llama.cpp's backends look for runs of operations next to each other that they have a
// kernel for; the rules are those of its CUDA backend (ggml-cuda.cu, version 0.25.3, and of its helpers in ggml-impl.h). A run costs one
// launch, and what no other kernel reads of it never reaches memory.
#pragma once

#include <cstdint>
#include <vector>

#include "model/forward.hpp"

namespace pshard {

struct Fusion {
  std::vector<KernelRun> runs;       // of more than one operation that is no view; in order, none over another
  std::vector<int64_t> inner_bytes;  // by operation: what it reads and writes of values that no other kernel sees
};

// Where no split comes between; what one interrupts is computed operation by operation.
[[nodiscard]] Fusion fusion_of(const Block& block);

}  // namespace pshard
