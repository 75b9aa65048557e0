#include "fleet/device_classes.hpp"

#include <algorithm>

namespace pshard {
namespace {

// Compares columns of a chain's tables; an empty table is zeros.
class Comparison {
 public:
  explicit Comparison(const Chain& chain) : chain_(chain), memories_(static_cast<size_t>(chain.n_device)) {
    for (size_t m = 0; m < chain.capacity_bytes.size(); ++m) {
      memories_[chain.memory_device.empty() ? m : static_cast<size_t>(chain.memory_device[m])].push_back(m);
    }
  }

  [[nodiscard]] bool alike(size_t a, size_t b) const {
    return same(chain_.entry_seconds, a, b) && same(chain_.exit_seconds, a, b) && same_memories(memories_[a], memories_[b]) &&
           same_column(chain_.layer_seconds, a, b, static_cast<size_t>(chain_.n_device)) && same_transfers(a, b);
  }

 private:
  template <typename T>
  static bool same(const std::vector<T>& table, size_t a, size_t b) {
    return table.empty() || table[a] == table[b];
  }
  template <typename T>
  [[nodiscard]] bool same_column(const std::vector<T>& table, size_t a, size_t b, size_t n_column) const {
    for (size_t row = 0; row < static_cast<size_t>(chain_.n_layer); ++row) {
      if (table[row * n_column + a] != table[row * n_column + b]) return false;
    }
    return true;
  }
  [[nodiscard]] bool same_memories(const std::vector<size_t>& a, const std::vector<size_t>& b) const {
    const size_t n_memory = chain_.capacity_bytes.size();
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](size_t m, size_t n) {
      return chain_.capacity_bytes[m] == chain_.capacity_bytes[n] && same(chain_.fixed_bytes, m, n) && same(chain_.entry_bytes, m, n) &&
             same(chain_.exit_bytes, m, n) && same(chain_.run_table, m, n) && same_column(chain_.layer_bytes, m, n, n_memory);
    });
  }
  [[nodiscard]] bool same_transfers(size_t a, size_t b) const {
    const std::vector<double>& table = chain_.transfer_seconds;
    if (table.empty()) return true;
    const auto n = static_cast<size_t>(chain_.n_device);
    if (table[a * n + b] != table[b * n + a]) return false;
    for (size_t c = 0; c < n; ++c) {
      if (c == a || c == b) continue;
      if (table[a * n + c] != table[b * n + c] || table[c * n + a] != table[c * n + b]) return false;
    }
    return true;
  }

  const Chain& chain_;
  std::vector<std::vector<size_t>> memories_;
};

}  // namespace

DeviceClasses::DeviceClasses(const Chain& chain) : class_of_(static_cast<size_t>(chain.n_device)) {
  const Comparison comparison(chain);
  for (int32_t device = 0; device < chain.n_device; ++device) {
    const auto found = std::find_if(members_.begin(), members_.end(), [&](const std::vector<int32_t>& members) {
      return comparison.alike(static_cast<size_t>(members.front()), static_cast<size_t>(device));
    });
    class_of_[static_cast<size_t>(device)] = static_cast<int32_t>(found - members_.begin());
    if (found == members_.end()) {
      members_.push_back({device});
    } else if (static_cast<int64_t>(found->size()) < chain.n_layer) {  // more of a kind than layers can never all be used
      found->push_back(device);
    }
  }
}

int64_t DeviceClasses::n_states(int64_t limit) const {
  int64_t n = n_class();
  for (const std::vector<int32_t>& members : members_) {
    if (n > limit) return limit + 1;
    n *= static_cast<int64_t>(members.size()) + 1;
  }
  return std::min(n, limit + 1);
}

}  // namespace pshard
