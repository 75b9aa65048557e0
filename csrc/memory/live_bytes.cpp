#include "memory/live_bytes.hpp"

#include <algorithm>
#include <limits>

namespace pshard {

namespace {

// One value's time on the GPU, first and last operation included.
struct Life {
  int64_t n_bytes = std::numeric_limits<int64_t>::max();
  size_t first = 0;
  size_t last = 0;
  bool is_computed = false;  // on the GPU, so that its size there is known
  bool is_alive = false;
};

class Lives {
 public:
  Lives(const Block& block, const std::vector<ScheduledOperation>& operations) : block_(block), lives_(block.values.size()) {
    for (size_t v = 0; v < block.values.size(); ++v) bases_.push_back(static_cast<int32_t>(v));
    for (size_t i = 0; i < operations.size(); ++i) {
      const Operation& operation = block.operations[i];
      if (operation.is_view) {
        base(operation.output) = base(operation.inputs[0]);
        continue;
      }
      const int32_t output = operation.output;
      if (output != kNoValue && operation.writes_into >= 0) {
        base(output) = base(operation.inputs[static_cast<size_t>(operation.writes_into)]);
      }
      if (operations[i].device != Device::gpu) continue;
      for (const int32_t operand : operation.inputs) {
        if (is_value(operand)) use(operand, i, false);
      }
      if (output != kNoValue) use(output, i, base(output) == output);
    }
  }

  // What the output of an operation may take the place of, at most.
  [[nodiscard]] int64_t replaced_bytes(size_t i) {
    const Operation& operation = block_.operations[i];
    int64_t most = 0;
    for (size_t operand = 0; operand < operation.inputs.size(); ++operand) {
      if ((operation.overwrites >> operand & 1) == 0) continue;
      const Life& life = lives_[static_cast<size_t>(base(operation.inputs[operand]))];
      if (life.last == i) most = std::max(most, life.n_bytes);
    }
    return most;
  }

  [[nodiscard]] const std::vector<Life>& all() const { return lives_; }

 private:
  int32_t& base(int32_t value) { return bases_[static_cast<size_t>(value)]; }

  void use(int32_t value, size_t operation, bool is_computed) {
    Life& life = lives_[static_cast<size_t>(base(value))];
    if (!life.is_alive) life.first = operation;
    life.is_alive = true;
    life.is_computed = life.is_computed || is_computed;
    life.last = operation;
    const int64_t n_bytes = block_.values[static_cast<size_t>(value)].n_bytes;
    if (is_computed || !life.is_computed) life.n_bytes = std::min(life.n_bytes, n_bytes);
  }

  const Block& block_;
  std::vector<int32_t> bases_;  // by value: what a view looks into, else the value itself
  std::vector<Life> lives_;     // by value
};

}  // namespace

std::vector<int64_t> live_gpu_bytes(const Block& block, const std::vector<ScheduledOperation>& operations) {
  Lives lives(block, operations);
  std::vector<int64_t> change(operations.size() + 1);
  for (const Life& life : lives.all()) {
    if (!life.is_alive) continue;
    change[life.first] += life.n_bytes;
    change[life.last + 1] -= life.n_bytes;
  }
  std::vector<int64_t> live(operations.size());
  int64_t sum = 0;
  for (size_t i = 0; i < operations.size(); ++i) {
    sum += change[i];
    const Operation& operation = block.operations[i];
    if (operations[i].device != Device::gpu || operation.is_view) continue;
    live[i] = sum - lives.replaced_bytes(i);
    if (!operations[i].copies_weight) continue;
    live[i] += operation.weight_part_bytes > 0 ? operation.weight_part_bytes : operation.weight->n_bytes;
  }
  return live;
}

}  // namespace pshard
