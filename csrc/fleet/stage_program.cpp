#include "fleet/stage_program.hpp"

#include <algorithm>

namespace pshard {

void StageProgram::add_arrival(const Arrival& arrival) {
  const auto covers = [](const Arrival& a, const Arrival& b) { return a.value <= b.value && a.transfer_seconds <= b.transfer_seconds; };
  for (const Arrival& other : arrivals_) {
    if (covers(other, arrival)) return;
  }
  std::erase_if(arrivals_, [&](const Arrival& other) { return covers(arrival, other); });
  arrivals_.push_back(arrival);
}

void StageProgram::add_nearest(int32_t index) {
  const std::span<const Cell> cells = row(index);
  for (size_t layer = 0; layer < cells.size(); ++layer) {
    if (cells[layer].value < nearest_[layer].value) nearest_[layer] = {cells[layer].value, 0.0, index};
  }
}

void StageProgram::find_arrivals(int32_t device, int64_t begin, std::span<const Source> sources) {
  if (!nearest_.empty()) {
    const Arrival& nearest = nearest_[static_cast<size_t>(begin)];
    arrivals_.assign(nearest.from >= 0 ? 1 : 0, nearest);
    return;
  }
  const bool transfers = measure_ != Measure::missing_bytes;
  const bool one_suffices = measure_ == Measure::total_seconds && limit_seconds_ == std::numeric_limits<double>::infinity();
  arrivals_.clear();
  for (const Source& source : sources) {
    const Cell& cell = row(source.row)[static_cast<size_t>(begin)];
    if (cell.begin < 0) continue;
    const double between = stages_.transfer_seconds(source.device, device);
    if (between == std::numeric_limits<double>::infinity()) continue;
    const double transfer = transfers ? between : 0.0;
    const double value = measure_ == Measure::total_seconds ? cell.value + transfer : cell.value;
    if (!one_suffices) {
      add_arrival({value, transfer, source.row});
    } else if (arrivals_.empty()) {
      arrivals_.push_back({value, transfer, source.row});
    } else if (value < arrivals_.front().value) {
      arrivals_.front() = {value, transfer, source.row};
    }
  }
}

template <Measure kMeasure>
void StageProgram::extend(std::span<Cell> cells, int32_t device, int64_t begin) {
  constexpr bool kBytes = kMeasure == Measure::missing_bytes;
  const int64_t n_layer = stages_.n_layer();
  const int64_t reach = kBytes ? n_layer - 1 : stages_.reach(device, begin);
  const bool to_end = kBytes || stages_.fits_to_end(device, begin);
  // False where the stage alone takes too long, and so do longer ones.
  const auto try_end = [&](int64_t end) {
    const double stage = kBytes ? static_cast<double>(stages_.missing_bytes(device, begin, end)) : stages_.seconds(device, begin, end);
    if (stage > limit_seconds_) return false;
    Cell& cell = cells[static_cast<size_t>(end)];
    for (const Arrival& arrival : arrivals_) {
      const double busy = stage + arrival.transfer_seconds;
      if (busy > limit_seconds_) continue;
      const double value = kMeasure == Measure::slowest_seconds ? std::max(arrival.value, busy) : arrival.value + stage;
      if (value < cell.value) cell = {value, static_cast<int32_t>(begin), arrival.from};
    }
    return true;
  };
  for (int64_t end = begin + 1; end <= reach; ++end) {
    if (!try_end(end)) return;
  }
  if (to_end) try_end(n_layer);
}

void StageProgram::fill(int32_t index, int32_t device, std::span<const Source> sources, bool may_begin) {
  const std::span<Cell> cells = row(index);
  for (int64_t begin = may_begin ? 0 : 1; begin < stages_.n_layer(); ++begin) {
    if (begin == 0) {
      arrivals_.assign(1, {0.0, 0.0, -1});
    } else {
      find_arrivals(device, begin, sources);
      if (arrivals_.empty()) continue;
    }
    switch (measure_) {
      case Measure::total_seconds:
        extend<Measure::total_seconds>(cells, device, begin);
        break;
      case Measure::slowest_seconds:
        extend<Measure::slowest_seconds>(cells, device, begin);
        break;
      case Measure::missing_bytes:
        extend<Measure::missing_bytes>(cells, device, begin);
        break;
    }
  }
}

Solution StageProgram::trace(int32_t last_row, std::span<const int32_t> device_of_row) {
  Solution solution;
  if (last_row < 0) return solution;
  int64_t end = stages_.n_layer();
  solution.value = row(last_row)[static_cast<size_t>(end)].value;
  for (int32_t index = last_row; index >= 0;) {
    const Cell& cell = row(index)[static_cast<size_t>(end)];
    solution.runs.push_back({device_of_row[static_cast<size_t>(index)], cell.begin, end});
    end = cell.begin;
    index = cell.from;
  }
  std::reverse(solution.runs.begin(), solution.runs.end());
  return solution;
}

Solution StageProgram::in_order(std::span<const int32_t> devices) {
  const auto n = static_cast<int32_t>(devices.size());
  cells_.assign(devices.size() * row_length(), Cell{});
  sources_.clear();
  const bool all_near = allow_empty_ && !stages_.has_transfers();
  nearest_.assign(all_near ? row_length() : 0, {std::numeric_limits<double>::infinity(), 0.0, -1});
  int32_t best = -1;
  for (int32_t i = 0; i < n; ++i) {
    const int32_t device = devices[static_cast<size_t>(i)];
    fill(i, device, sources_, allow_empty_ || i == 0);
    if (!allow_empty_) sources_.clear();
    if (all_near) {
      add_nearest(i);
    } else {
      sources_.push_back({i, device});
    }
    const Cell& last = row(i).back();
    const bool counts = allow_empty_ || i + 1 == n;
    if (counts && last.begin >= 0 && (best < 0 || last.value < row(best).back().value)) best = i;
  }
  return trace(best, devices);
}

// A set of devices is the number of each class in it, the digits of its index; the last device is the last of its class in the set.
Solution StageProgram::over_all_orders(const DeviceClasses& classes) {
  const auto& members = classes.members();
  const int32_t n_class = classes.n_class();
  std::vector<int32_t> stride(members.size());
  int32_t n_set = 1;
  for (size_t c = 0; c < members.size(); ++c) {
    stride[c] = n_set;
    n_set *= static_cast<int32_t>(members[c].size()) + 1;
  }
  const auto count = [&](int32_t set, int32_t c) {
    const auto index = static_cast<size_t>(c);
    return set / stride[index] % (static_cast<int32_t>(members[index].size()) + 1);
  };
  cells_.assign(static_cast<size_t>(n_set) * members.size() * row_length(), Cell{});
  nearest_.clear();
  std::vector<int32_t> device_of_row(static_cast<size_t>(n_set) * members.size(), -1);
  int32_t best = -1;
  for (int32_t set = 1; set < n_set; ++set) {
    // Backwards, so that of equal orders the one by index is found first.
    for (int32_t last = n_class - 1; last >= 0; --last) {
      if (count(set, last) == 0) continue;
      const int32_t before = set - stride[static_cast<size_t>(last)];
      sources_.clear();
      for (int32_t other = n_class - 1; other >= 0; --other) {
        if (count(before, other) == 0) continue;
        const int32_t row = before * n_class + other;
        sources_.push_back({row, device_of_row[static_cast<size_t>(row)]});
      }
      const int32_t index = set * n_class + last;
      const int32_t device = members[static_cast<size_t>(last)][static_cast<size_t>(count(set, last) - 1)];
      device_of_row[static_cast<size_t>(index)] = device;
      fill(index, device, sources_, before == 0);
      const Cell& end = row(index).back();
      const bool counts = allow_empty_ || set + 1 == n_set;
      if (counts && end.begin >= 0 && (best < 0 || end.value < row(best).back().value)) best = index;
    }
  }
  return trace(best, device_of_row);
}

}  // namespace pshard
