#include "stream/packing.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace pshard {
namespace {

constexpr int64_t kNotPlaced = -1;
constexpr int64_t kNoCeiling = -1;
constexpr int kTries = 100;

using Turns = std::vector<size_t>;  // tenants in the order in which they get their places

class Packer {
 public:
  Packer(std::vector<Tenant> tenants, std::vector<int64_t> from_start, int64_t alignment)
      : tenants_(std::move(tenants)), from_start_(std::move(from_start)), met_(tenants_.size()) {
    const auto align = [&](int64_t& n_bytes) { n_bytes = (n_bytes + alignment - 1) / alignment * alignment; };
    for (Tenant& tenant : tenants_) align(tenant.n_bytes);
    for (int64_t& n_bytes : from_start_) align(n_bytes);
    find_meetings();
  }

  // What is there at once: no packing takes less.
  [[nodiscard]] int64_t least() const {
    std::vector<int64_t> bytes = from_start_;
    for (const Tenant& tenant : tenants_) {
      for (auto step = static_cast<size_t>(tenant.first); step <= static_cast<size_t>(tenant.last); ++step) bytes[step] += tenant.n_bytes;
    }
    return *std::max_element(bytes.begin(), bytes.end());
  }

  [[nodiscard]] Packing pack(int64_t enough) {
    const int64_t ceilings[] = {std::max(enough, least()), least()};
    enough = ceilings[0];
    Packing best;
    best.n_bytes = std::numeric_limits<int64_t>::max();
    // Whoever lies where most is taken was served too late: next time they come earlier.
    std::vector<int64_t> complaints(tenants_.size(), 0);
    for (int tried = 0; tried < kTries && best.n_bytes > enough; ++tried) {
      Packing packing = packed(turns(complaints), tried % 2 == 1 ? ceilings[tried / 2 % 2] : kNoCeiling);
      for (size_t i = 0; i < tenants_.size(); ++i) complaints[i] += lies_deepest(tenants_[i], packing) ? 1 : 0;
      if (packing.n_bytes < best.n_bytes) best = std::move(packing);
    }
    return best;
  }

 private:
  void find_meetings() {
    Turns by_time(tenants_.size());
    std::iota(by_time.begin(), by_time.end(), size_t{0});
    std::stable_sort(by_time.begin(), by_time.end(), [&](size_t a, size_t b) { return tenants_[a].first < tenants_[b].first; });
    for (size_t i = 0; i < by_time.size(); ++i) {
      const size_t a = by_time[i];
      for (size_t j = i + 1; j < by_time.size() && tenants_[by_time[j]].first <= tenants_[a].last; ++j) {
        met_[a].push_back(by_time[j]);
        met_[by_time[j]].push_back(a);
      }
    }
    bool from_ceiling = false;
    int32_t came = -1;
    from_ceiling_.assign(tenants_.size(), false);
    for (const size_t i : by_time) {
      if (tenants_[i].first == tenants_[i].last) continue;
      if (tenants_[i].first != came) from_ceiling = !from_ceiling;
      came = tenants_[i].first;
      from_ceiling_[i] = from_ceiling;
    }
  }

  // Of those with as many complaints, the largest first.
  [[nodiscard]] Turns turns(const std::vector<int64_t>& complaints) const {
    Turns order(tenants_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto key = [&](size_t i) { return std::pair(-complaints[i], -tenants_[i].n_bytes); };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(a) < key(b); });
    return order;
  }

  // With a ceiling, every second generation of tenants hangs from it: of two that follow each other, neither is in the other's way then.
  [[nodiscard]] Packing packed(const Turns& order, int64_t ceiling) {
    Packing packing;
    packing.before_end.assign(tenants_.size(), kNotPlaced);
    packing.depth.assign(from_start_.size(), 0);
    for (const size_t i : order) {
      find_taken(packing.before_end, i);
      int64_t place = ceiling != kNoCeiling && from_ceiling_[i] ? hung(i, ceiling) : kNotPlaced;
      if (place == kNotPlaced) place = best_fit(tenants_[i].n_bytes);
      packing.before_end[i] = place;
      for (auto step = static_cast<size_t>(tenants_[i].first); step <= static_cast<size_t>(tenants_[i].last); ++step) {
        packing.depth[step] = std::max(packing.depth[step], place);
      }
    }
    for (size_t step = 0; step < from_start_.size(); ++step) {
      packing.n_bytes = std::max(packing.n_bytes, packing.depth[step] + from_start_[step]);
    }
    return packing;
  }

  // Where those lie that it meets.
  void find_taken(const std::vector<int64_t>& before_end, size_t tenant) {
    taken_.clear();
    for (const size_t other : met_[tenant]) {
      if (before_end[other] != kNotPlaced) taken_.emplace_back(before_end[other] - tenants_[other].n_bytes, before_end[other]);
    }
  }

  // As far from the end as what grows from the start allows.
  [[nodiscard]] int64_t hung(size_t i, int64_t ceiling) {
    const Tenant& tenant = tenants_[i];
    std::sort(taken_.begin(), taken_.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    int64_t top = ceiling - *std::max_element(from_start_.begin() + tenant.first, from_start_.begin() + tenant.last + 1);
    for (const auto& [from, to] : taken_) {
      if (top - to >= tenant.n_bytes) break;
      top = std::min(top, from);
    }
    return top >= tenant.n_bytes ? top : kNotPlaced;
  }

  // The smallest gap, else behind all.
  [[nodiscard]] int64_t best_fit(int64_t n_bytes) {
    std::sort(taken_.begin(), taken_.end());
    int64_t end = 0;
    int64_t best = kNotPlaced;
    int64_t smallest = std::numeric_limits<int64_t>::max();
    for (const auto& [from, to] : taken_) {
      const int64_t gap = from - end;
      if (gap >= n_bytes && gap < smallest) {
        best = end + n_bytes;
        smallest = gap;
      }
      end = std::max(end, to);
    }
    return best == kNotPlaced ? end + n_bytes : best;
  }

  [[nodiscard]] bool lies_deepest(const Tenant& tenant, const Packing& packing) const {
    for (auto step = static_cast<size_t>(tenant.first); step <= static_cast<size_t>(tenant.last); ++step) {
      if (packing.depth[step] + from_start_[step] == packing.n_bytes) return true;
    }
    return false;
  }

  std::vector<Tenant> tenants_;
  std::vector<int64_t> from_start_;
  std::vector<std::vector<size_t>> met_;            // by tenant: others that are there at the same time
  std::vector<bool> from_ceiling_;                  // by tenant
  std::vector<std::pair<int64_t, int64_t>> taken_;  // scratch
};

}  // namespace

Packing pack(const std::vector<Tenant>& tenants, const std::vector<int64_t>& from_start, int64_t alignment, int64_t enough) {
  return Packer(tenants, from_start, alignment).pack(enough / alignment * alignment);
}

}  // namespace pshard
