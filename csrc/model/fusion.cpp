#include "model/fusion.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>

namespace pshard {
namespace {

enum class Part : uint8_t { other, view, product, experts, norm, scale, multiply, add, rope, gate, activate, convolve, delta, write };

Part part_of(const Operation& operation) {
  if (operation.is_view) return Part::view;
  if (operation.kind == OpKind::mul_mat) return Part::product;
  if (operation.kind == OpKind::mul_mat_id) return Part::experts;
  if (operation.recurrence == Recurrence::delta_net) return Part::delta;
  switch (operation.step) {
    case Step::scale:
      return Part::scale;
    case Step::rms_norm:
      return Part::norm;
    case Step::multiply:
      return Part::multiply;
    case Step::add:
      return Part::add;
    case Step::rope:
      return Part::rope;
    case Step::gate:
      return Part::gate;
    case Step::activate:
      return Part::activate;
    case Step::convolve:
      return Part::convolve;
    case Step::write:
      return Part::write;
    case Step::other:
      break;
  }
  return Part::other;
}

class Matcher {
 public:
  explicit Matcher(const Block& block) : block_(block), n_(static_cast<int32_t>(block.operations.size())), bases_(block.values.size()) {
    readers_.resize(block.values.size());
    for (size_t v = 0; v < bases_.size(); ++v) bases_[v] = static_cast<int32_t>(v);
    for (int32_t i = 0; i < n_; ++i) {
      for (const int32_t input : at(i).inputs) {
        if (is_value(input)) readers_[static_cast<size_t>(input)].push_back(i);
      }
      if (at(i).is_view && is_value(at(i).inputs[0])) bases_[static_cast<size_t>(at(i).output)] = base(at(i).inputs[0]);
    }
  }

  // The run that begins at `first`.
  [[nodiscard]] std::optional<KernelRun> run_at(int32_t first) const {
    for (const KernelRun& known : block_.kernels) {
      if (known.first == first) return known;
    }
    using enum Part;
    switch (part_of(at(first))) {
      case norm:
        return first_of(
            first, {{norm, multiply, rope, view, write}, {norm, multiply, rope}, {norm, multiply, add}, {norm, multiply}, {norm, scale}});
      case rope:
        return first_of(first, {{rope, view, write}});
      case convolve:
        return first_of(first, {{convolve, add, activate}, {convolve, activate}});
      case activate:
        return first_of(first, {{activate, multiply}});
      case delta:
        return with_its_state(first);
      case add:
      case multiply:
        return chain(first);
      case product:
      case experts: {
        if (!is_of_few_rows(at(first))) return std::nullopt;
        const Part part = part_of(at(first));
        if (const auto gated = first_of(first, {{part, add, part, add, gate}, {part, part, gate}})) {
          if (are_alike(at(first), at(gated->last - (gated->last - first) / 2)) && !is_written_over(*gated)) return gated;
        }
        return first_of(first, {{part, add}});
      }
      default:
        return std::nullopt;
    }
  }

  // Bytes of what the operation reads and writes of values that only the run sees.
  [[nodiscard]] int64_t inner_bytes(const KernelRun& run, int32_t i) const {
    const int64_t written = is_value(at(i).output) ? bytes_of(at(i).output) : 0;
    int64_t read = 0;
    for (const int32_t input : at(i).inputs) {
      if (is_value(input) && is_made_in(run, input) && is_inner(run, base(input))) read += bytes_of(input);
    }
    read = std::min(read, at(i).activation_bytes - written);  // views have gaps
    return is_value(at(i).output) && is_inner(run, at(i).output) ? read + written : read;
  }

 private:
  [[nodiscard]] const Operation& at(int32_t i) const { return block_.operations[static_cast<size_t>(i)]; }
  [[nodiscard]] int32_t base(int32_t value) const { return bases_[static_cast<size_t>(value)]; }
  [[nodiscard]] int64_t bytes_of(int32_t value) const { return block_.values[static_cast<size_t>(value)].n_bytes; }
  [[nodiscard]] const std::vector<int32_t>& readers(int32_t value) const { return readers_[static_cast<size_t>(value)]; }

  [[nodiscard]] bool leaves_block(int32_t value) const {
    const auto is_handed = [&](const Handed& handed) { return handed.out == value; };
    return value == block_.residual_out || block_.values[static_cast<size_t>(value)].is_kept ||
           std::any_of(block_.handed.begin(), block_.handed.end(), is_handed);
  }

  // No operation behind the run reads it, through views or not.
  [[nodiscard]] bool is_inner(const KernelRun& run, int32_t value) const {
    if (leaves_block(value)) return false;
    return std::all_of(readers(value).begin(), readers(value).end(), [&](int32_t reader) {
      return run.first <= reader && reader <= run.last && (!at(reader).is_view || is_inner(run, at(reader).output));
    });
  }

  [[nodiscard]] bool is_made_in(const KernelRun& run, int32_t value) const {
    for (int32_t i = run.first; i <= run.last; ++i) {
      if (!at(i).is_view && at(i).output == base(value)) return true;
    }
    return false;
  }

  // CUDA's kernels for few rows add and gate what they have multiplied: of a dense product for one row, of routed experts for up to 4 to 8
  // tokens, by type and GPU.
  [[nodiscard]] static bool is_of_few_rows(const Operation& product) {
    constexpr int64_t kTokensOfExperts = 4;
    return product.kind == OpKind::mul_mat ? product.m == 1 : product.offload_rows <= kTokensOfExperts;
  }

  [[nodiscard]] static bool are_alike(const Operation& gate, const Operation& up) {
    return gate.inputs == up.inputs && gate.n == up.n && gate.k == up.k && gate.weight->type.id == up.weight->type.id;
  }

  // The kernel would overwrite what it reads. The allocator puts the result where the products' operand was, if that is not needed any more
  // and large enough. (Where the two smallest free gaps are of other values, this may err.)
  [[nodiscard]] bool is_written_over(const KernelRun& gated) const {
    const int32_t operand = base(at(gated.first).inputs[1]);
    if (bytes_of(operand) < bytes_of(at(gated.last).output) || leaves_block(operand)) return false;
    for (int32_t i = gated.last + 1; i < n_; ++i) {
      for (const int32_t input : at(i).inputs) {
        if (is_value(input) && base(input) == operand && !at(i).is_view) return false;
      }
    }
    return true;
  }

  [[nodiscard]] std::optional<KernelRun> first_of(int32_t first, std::initializer_list<std::initializer_list<Part>> patterns) const {
    for (const auto& pattern : patterns) {
      if (matches(first, pattern)) return KernelRun{first, first + static_cast<int32_t>(pattern.size()) - 1};
    }
    return std::nullopt;
  }

  [[nodiscard]] bool matches(int32_t first, std::initializer_list<Part> pattern) const {
    const KernelRun run{first, first + static_cast<int32_t>(pattern.size()) - 1};
    if (run.last >= n_) return false;
    int32_t i = first;
    for (const Part part : pattern) {
      if (part_of(at(i)) != part) return false;
      // All that it makes is read once, in the run; and what comes behind the first reads something of it.
      if (i < run.last && !(readers(at(i).output).size() == 1 && is_inner(run, at(i).output))) return false;
      if (i > first && part != Part::product && part != Part::experts && !continues(run, i)) return false;
      ++i;
    }
    return true;
  }

  // Reads what the run has made, and adds or multiplies by as much as that is.
  [[nodiscard]] bool continues(const KernelRun& run, int32_t i) const {
    const Operation& operation = at(i);
    bool reads_run = false;
    for (const int32_t input : operation.inputs) reads_run = reads_run || (is_value(input) && is_made_in(run, input));
    const bool combines = operation.step == Step::add || operation.step == Step::multiply;
    return reads_run && (!combines || operation.kind != OpKind::elementwise || has_equal_operands(operation));
  }

  [[nodiscard]] bool has_equal_operands(const Operation& operation) const {
    const int32_t second = operation.inputs[1];
    return !is_value(second) || (is_value(operation.inputs[0]) && bytes_of(second) == bytes_of(operation.inputs[0]));
  }

  // The gated delta rule writes the state that it ends with to its place by itself.
  [[nodiscard]] std::optional<KernelRun> with_its_state(int32_t first) const {
    if (first + 2 >= n_) return std::nullopt;
    const Operation& state = at(first + 1);
    const Operation& stored = at(first + 2);
    const bool is_stored = state.is_view && state.inputs[0] == at(first).output && stored.kind == OpKind::copy && stored.cache_bytes > 0 &&
                           stored.inputs[0] == state.output;
    return is_stored ? std::optional(KernelRun{first, first + 2}) : std::nullopt;
  }

  // Sums, or products, of up to eight operands in a row.
  [[nodiscard]] std::optional<KernelRun> chain(int32_t first) const {
    constexpr int32_t kMost = 7;
    KernelRun run{first, first};
    while (run.last + 1 < n_ && run.last - first < kMost) {
      const Operation& current = at(run.last);
      const Operation& next = at(run.last + 1);
      const bool goes_on = part_of(next) == part_of(current) && next.inputs[0] == current.output && readers(current.output).size() == 1 &&
                           !leaves_block(current.output) && is_value(current.inputs[1]) && is_value(next.inputs[1]) &&
                           bytes_of(next.inputs[1]) == bytes_of(current.inputs[1]);
      if (!goes_on) break;
      ++run.last;
    }
    return run.last > first ? std::optional(run) : std::nullopt;
  }

  const Block& block_;
  int32_t n_;
  std::vector<int32_t> bases_;  // of a value: whose memory it is
  std::vector<std::vector<int32_t>> readers_;
};

}  // namespace

Fusion fusion_of(const Block& block) {
  const Matcher matcher(block);
  Fusion fusion;
  fusion.inner_bytes.resize(block.operations.size(), 0);
  const auto n = static_cast<int32_t>(block.operations.size());
  for (int32_t i = 0; i < n; ++i) {
    const std::optional<KernelRun> run = matcher.run_at(i);
    if (!run) continue;
    fusion.runs.push_back(*run);
    for (; i <= run->last; ++i) {
      if (!block.operations[static_cast<size_t>(i)].is_view) fusion.inner_bytes[static_cast<size_t>(i)] = matcher.inner_bytes(*run, i);
    }
    --i;
  }
  return fusion;
}

}  // namespace pshard
