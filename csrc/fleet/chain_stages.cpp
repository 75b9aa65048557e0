#include "fleet/chain_stages.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace pshard {
namespace {

// Sums of bytes stay far from the end of int64_t.
constexpr int64_t kMaxBytes = int64_t{1} << 52;

void check_size(size_t found, int64_t wanted, bool optional, const char* name) {
  if (static_cast<int64_t>(found) == wanted || (optional && found == 0)) return;
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(found) + " entries, but the chain needs " +
                              std::to_string(wanted));
}

void check_seconds(const std::vector<double>& values, int64_t wanted, bool optional, const char* name, bool may_be_infinite = false) {
  check_size(values.size(), wanted, optional, name);
  for (const double value : values) {
    if (value >= 0.0 && (may_be_infinite || std::isfinite(value))) continue;
    throw std::invalid_argument(std::string(name) + " holds " + std::to_string(value) + "; seconds are finite and not negative");
  }
}

void check_bytes(const std::vector<int64_t>& values, int64_t wanted, bool optional, const char* name) {
  check_size(values.size(), wanted, optional, name);
  for (const int64_t value : values) {
    if (value >= 0 && value <= kMaxBytes) continue;
    throw std::invalid_argument(std::string(name) + " holds " + std::to_string(value) + "; bytes are between 0 and " +
                                std::to_string(kMaxBytes));
  }
}

void check(const Chain& chain) {
  constexpr int64_t kMaxLayers = 1 << 16;
  constexpr int64_t kMaxDevices = 1 << 12;
  if (chain.n_layer < 1 || chain.n_layer > kMaxLayers || chain.n_device < 1 || chain.n_device > kMaxDevices) {
    throw std::invalid_argument("a chain of " + std::to_string(chain.n_layer) + " layers and " + std::to_string(chain.n_device) +
                                " devices; give at least one of both, at most 65536 and 4096");
  }
  const int64_t n_device = chain.n_device;
  check_seconds(chain.layer_seconds, chain.n_layer * n_device, false, "layer_seconds");
  check_seconds(chain.transfer_seconds, n_device * n_device, true, "transfer_seconds", true);
  check_seconds(chain.entry_seconds, n_device, true, "entry_seconds");
  check_seconds(chain.exit_seconds, n_device, true, "exit_seconds");
  const auto n_memory = chain.memory_device.empty() ? n_device : static_cast<int64_t>(chain.memory_device.size());
  check_bytes(chain.capacity_bytes, n_memory, false, "capacity_bytes");
  check_bytes(chain.layer_bytes, chain.n_layer * n_memory, false, "layer_bytes");
  check_bytes(chain.fixed_bytes, n_memory, true, "fixed_bytes");
  check_bytes(chain.entry_bytes, n_memory, true, "entry_bytes");
  check_bytes(chain.exit_bytes, n_memory, true, "exit_bytes");
  const int64_t table_size = (chain.n_layer + 1) * (chain.n_layer + 1);
  check_size(chain.run_table.size(), n_memory, true, "run_table");
  check_bytes(chain.run_bytes, static_cast<int64_t>(chain.run_bytes.size()) / table_size * table_size, true, "run_bytes");
  for (const int32_t table : chain.run_table) {
    if (table >= 0 && (table + 1) * table_size <= static_cast<int64_t>(chain.run_bytes.size())) continue;
    throw std::invalid_argument("run_table names table " + std::to_string(table) + ", and run_bytes does not have so many");
  }
  for (const int32_t device : chain.memory_device) {
    if (device >= 0 && device < n_device) continue;
    throw std::invalid_argument("memory_device names device " + std::to_string(device) + " of " + std::to_string(n_device) +
                                "; count them from 0");
  }
}

template <typename T>
T entry(const std::vector<T>& optional, size_t index) {
  return optional.empty() ? T{0} : optional[index];
}

}  // namespace

ChainStages::ChainStages(const Chain& chain) : chain_(chain) {
  check(chain);
  const auto n_device = static_cast<size_t>(chain.n_device);
  const size_t n_memory = chain.capacity_bytes.size();
  const auto n_row = static_cast<size_t>(chain.n_layer + 1);
  seconds_before_.assign(n_device * n_row, 0.0);
  bytes_before_.assign(n_memory * n_row, 0);
  for (int64_t layer = 0; layer < chain.n_layer; ++layer) {
    const auto row = static_cast<size_t>(layer);
    for (size_t d = 0; d < n_device; ++d) {
      const auto device = static_cast<int64_t>(d);
      seconds_before_[at(device, layer + 1)] = seconds_before_[at(device, layer)] + chain.layer_seconds[row * n_device + d];
    }
    for (size_t m = 0; m < n_memory; ++m) {
      const auto memory = static_cast<int64_t>(m);
      bytes_before_[at(memory, layer + 1)] = bytes_before_[at(memory, layer)] + chain.layer_bytes[row * n_memory + m];
    }
  }
  memories_.resize(n_device);
  for (size_t m = 0; m < n_memory; ++m) {
    memories_[chain.memory_device.empty() ? m : static_cast<size_t>(chain.memory_device[m])].push_back(m);
  }
  reach_.assign(n_device * n_row, 0);
  for (int32_t device = 0; device < chain.n_device; ++device) {
    for (int64_t begin = 0; begin < chain.n_layer; ++begin) {
      int64_t end = std::max(begin, begin == 0 ? 0 : reach_[at(device, begin - 1)]);
      while (end + 1 < chain.n_layer && missing_bytes(device, begin, end + 1) == 0) ++end;
      reach_[at(device, begin)] = end;
    }
  }
}

double ChainStages::transfer_seconds(int32_t from, int32_t to) const {
  return entry(chain_.transfer_seconds, static_cast<size_t>(from) * static_cast<size_t>(chain_.n_device) + static_cast<size_t>(to));
}

// In that time each device does at most as many layers as if all were its quickest, and all devices together must do all.
double ChainStages::least_slowest_seconds() const {
  const auto n_device = static_cast<size_t>(chain_.n_device);
  double layers_per_second = 0.0;
  for (size_t device = 0; device < n_device; ++device) {
    double quickest = std::numeric_limits<double>::infinity();
    for (size_t at = device; at < chain_.layer_seconds.size(); at += n_device) quickest = std::min(quickest, chain_.layer_seconds[at]);
    layers_per_second += 1.0 / quickest;
  }
  return static_cast<double>(chain_.n_layer) / layers_per_second;
}

double ChainStages::seconds(int32_t device, int64_t begin, int64_t end) const {
  const auto index = static_cast<size_t>(device);
  double seconds = seconds_before_[at(device, end)] - seconds_before_[at(device, begin)];
  if (begin == 0) seconds += entry(chain_.entry_seconds, index);
  if (end == chain_.n_layer) seconds += entry(chain_.exit_seconds, index);
  return std::max(seconds, 0.0);
}

int64_t ChainStages::run_bytes(size_t memory, int64_t begin, int64_t end) const {
  if (chain_.run_table.empty()) return 0;
  const int64_t n_row = chain_.n_layer + 1;
  return chain_.run_bytes[static_cast<size_t>((chain_.run_table[memory] * n_row + begin) * n_row + end)];
}

int64_t ChainStages::memory_missing_bytes(size_t memory, int64_t begin, int64_t end) const {
  const auto row = static_cast<int64_t>(memory);
  int64_t n_bytes =
      bytes_before_[at(row, end)] - bytes_before_[at(row, begin)] + entry(chain_.fixed_bytes, memory) + run_bytes(memory, begin, end);
  if (begin == 0) n_bytes += entry(chain_.entry_bytes, memory);
  if (end == chain_.n_layer) n_bytes += entry(chain_.exit_bytes, memory);
  return std::max<int64_t>(n_bytes - chain_.capacity_bytes[memory], 0);
}

int64_t ChainStages::missing_bytes(int32_t device, int64_t begin, int64_t end) const {
  int64_t missing = 0;
  for (const size_t memory : memories_[static_cast<size_t>(device)]) missing += memory_missing_bytes(memory, begin, end);
  return missing;
}

}  // namespace pshard
