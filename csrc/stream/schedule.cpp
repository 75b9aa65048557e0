#include "stream/schedule.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "probe/gpu_kernels.hpp"
#include "probe/kernels.hpp"

namespace pshard {
namespace {

constexpr int kF16 = 1;

bool is_product(const Operation& operation) { return operation.kind == OpKind::mul_mat || operation.kind == OpKind::mul_mat_id; }

void append(std::vector<int32_t>& to, const std::vector<int32_t>& from) { to.insert(to.end(), from.begin(), from.end()); }
void append(std::vector<CachePart>& to, const std::vector<CachePart>& from) { to.insert(to.end(), from.begin(), from.end()); }

class Builder {
 public:
  Builder(const Model& model, const Placement& placement, const Pass& pass, const std::vector<int64_t>& cache_bytes)
      : model_(model), placement_(placement), pass_(pass), executed_(model, pass) {
    if (pass.n_seqs != 1 || pass.n_streams != 1) {
      throw std::invalid_argument("a pass of " + std::to_string(pass.n_seqs) + " sequences is not executed; plan for one");
    }
    if (cache_bytes.size() != model.layers().size()) {
      throw std::invalid_argument(std::to_string(cache_bytes.size()) + " cache sizes for " + std::to_string(model.layers().size()) +
                                  " layers");
    }
    schedule_.n_tokens = pass.n_tokens;
    schedule_.n_expert = model.hyperparameters().n_expert;
    schedule_.n_expert_used = model.hyperparameters().n_expert_used;
    schedule_.n_gpu = placement.n_gpu;
    for (const int64_t n_bytes : cache_bytes) schedule_.caches.push_back({.home = Device::host, .n_bytes = 0, .home_bytes = n_bytes});
  }

  Schedule build() {
    const bool offloads = placement_.op_offload && placement_.n_gpu > 0;
    std::vector<std::pair<Block, BlockPlacement>> path;
    path.emplace_back(embedding_block(model_, pass_),
                      BlockPlacement{.layer = LayerPlacement::uniform(Where::cpu), .exceptions = exceptions_of(placement_, kNoLayer)});
    const size_t n_layer = model_.layers().size();
    for (size_t i = 0; i < n_layer; ++i) {
      path.emplace_back(layer_block(model_, model_.layers()[i], pass_, i + 1 == n_layer),
                        BlockPlacement{.layer = placement_.layer(i), .op_offload = offloads, .exceptions = exceptions_of(placement_, i)});
      const Where home = placement_.layer(i)[Group::cache];
      schedule_.caches[i].home = is_pinned(home) ? gpu_device(gpu_of(home)) : Device::host;
    }
    path.emplace_back(head_block(model_, pass_), BlockPlacement{.layer = LayerPlacement::uniform(placement_.head),
                                                                .head = placement_.head,
                                                                .op_offload = offloads && placement_.head_op_offload,
                                                                .exceptions = exceptions_of(placement_, kNoLayer)});
    std::vector<BlockEnds> ends;
    for (const auto& [block, where] : path) {
      check_hidden_state_suffices(block);
      ends.push_back(block_ends(block, where));
    }
    Device residual = Device::host;
    for (size_t i = 0; i < path.size(); ++i) {
      const Neighbours neighbours{i == 0 ? Where::cpu : ends[i - 1].last, i + 1 < path.size() ? ends[i + 1].first : Where::cpu};
      const PlacedBlock placed = place(path[i].first, path[i].second, neighbours, residual);
      add_block(path[i].first, path[i].second, placed,
                static_cast<int32_t>(i) - 1 < static_cast<int32_t>(n_layer) ? static_cast<int32_t>(i) - 1 : -1);
      residual = placed.residual;
    }
    finish(path, residual);
    return std::move(schedule_);
  }

 private:
  void check_hidden_state_suffices(const Block& block) const {
    if (block.handed[static_cast<size_t>(Beside::shared)].in == kNoValue) return;
    throw std::invalid_argument("architecture '" + model_.hyperparameters().architecture +
                                "' hands more than the hidden state from layer to layer, which is not executed");
  }

  void add_block(const Block& block, const BlockPlacement& where, const PlacedBlock& placed, int32_t layer) {
    std::vector<Split> runs;
    int64_t n_written = 0;
    for (const PlacedOperation& current : placed.operations) {
      const Operation& operation = block.operations[current.index];
      if (runs.empty() || runs.back().lane != current.lane) {
        runs.emplace_back();
        runs.back().lane = current.lane;
        runs.back().device = current.device;
      }
      Split& run = runs.back();
      run.values.insert(run.values.end(), current.values.begin(), current.values.end());
      const int32_t tensor = add_weight(operation, where, current, run);
      const CachePart part = cache_part(operation, layer, n_written);
      add_cache_move(current.cache, part, run);
      add_work(operation, tensor, layer, part, run);
    }
    for (Split& run : runs) {
      if (layer >= 0 && !run.operations.empty()) {
        run.first_layer = layer;
        run.n_layers = 1;
      }
      add(std::move(run));
    }
  }

  int32_t add_weight(const Operation& operation, const BlockPlacement& where, const PlacedOperation& current, Split& run) {
    if (operation.weight == nullptr || operation.kind == OpKind::get_rows) return -1;
    const Where place = where.weight_of(operation);
    const bool is_resident = current.weight == WeightMove::none && is_pinned(place);
    const int32_t tensor = tensor_of(*operation.weight, is_resident ? gpu_device(gpu_of(place)) : Device::host);
    const bool is_routed = operation.kind == OpKind::mul_mat_id;
    if (current.weight == WeightMove::streamed) {
      (is_routed ? run.streamed_experts : run.streamed).push_back(tensor);
      if (is_routed && where.of(Group::router) == where.of(operation.group)) run.can_slice = false;
    } else if (current.weight == WeightMove::offloaded) {
      (is_routed ? run.offloaded_experts : run.offloaded).push_back(tensor);
    }
    return tensor;
  }

  int32_t tensor_of(const Tensor& tensor, Device home) {
    const auto [known, is_new] = tensors_.try_emplace({tensor.name, home}, static_cast<int32_t>(schedule_.tensors.size()));
    if (is_new) schedule_.tensors.push_back({tensor.name, tensor.type, tensor.shape, tensor.n_bytes, home});
    return known->second;
  }

  // Keys lie before values; the last cells are written.
  CachePart cache_part(const Operation& operation, int32_t layer, int64_t& n_written) {
    if (operation.cache_bytes <= 0 || layer < 0) return {};
    LayerCache& cache = schedule_.caches[static_cast<size_t>(layer)];
    CachePart part{layer, 0, operation.cache_bytes};
    if (operation.kind == OpKind::copy && model_.layers()[static_cast<size_t>(layer)].parameters.head_dim_k > 0) {
      const LayerParameters& parameters = model_.layers()[static_cast<size_t>(layer)].parameters;
      const int64_t cells = parameters.window > 0 ? pass_.n_kv_window : pass_.n_kv;
      const int64_t plane = operation.cache_bytes / pass_.n_tokens * cells;
      part.offset = std::max<int64_t>(0, (n_written % 2 + 1) * plane - operation.cache_bytes);
      ++n_written;
    }
    cache.n_bytes = std::max(cache.n_bytes, part.offset + part.n_bytes);
    return part;
  }

  static void add_cache_move(CacheMove move, const CachePart& part, Split& run) {
    if (move == CacheMove::up || move == CacheMove::up_and_down) run.cache_up.push_back(part);
    if (move == CacheMove::down || move == CacheMove::up_and_down) run.cache_down.push_back(part);
    if (move == CacheMove::fetched) run.cache_fetched.push_back(part);
  }

  void add_work(const Operation& operation, int32_t tensor, int32_t layer, const CachePart& part, Split& run) {
    if (const char* reason = executed_.why_not(operation)) {
      leave_out(operation, reason);
      return;
    }
    StreamOperation work;
    work.kind = operation.kind;
    work.tensor = tensor;
    work.layer = layer;
    work.n = operation.n;
    work.k = operation.k;
    work.m = operation.m;
    work.cache_offset = part.offset;
    work.cache_bytes = operation.cache_bytes;
    if (is_product(operation)) {
      work.type = *kernel_type(operation.weight->type);
      work.has_own_rows = operation.group == Group::experts_down;
      schedule_.weight_bytes += operation.weight->n_bytes;
    } else if (operation.kind == OpKind::attention) {
      const LayerParameters& parameters = model_.layers()[static_cast<size_t>(layer)].parameters;
      work.attention = {parameters.n_head, parameters.n_head_kv, parameters.head_dim_k, operation.k, operation.m};
    }
    schedule_.flop += operation.flop;
    run.operations.push_back(work);
  }

  void leave_out(const Operation& operation, const char* reason) {
    const auto known =
        std::find_if(schedule_.left_out.begin(), schedule_.left_out.end(), [&](const LeftOut& l) { return l.what == reason; });
    LeftOut& left = known != schedule_.left_out.end() ? *known : schedule_.left_out.emplace_back(LeftOut{reason, 0, 0});
    ++left.count;
    if (is_product(operation) && operation.weight != nullptr) left.weight_bytes += operation.weight->n_bytes;
  }

  // A lane has one slot, so weights behind weights on the same lane wait for their own split.
  void add(Split&& run) {
    const bool is_first = schedule_.splits.empty();
    if (!is_first && schedule_.splits.back().lane == run.lane) {
      Split& current = schedule_.splits.back();
      if (!(is_streamed(run.lane) && current.streams() && run.streams())) {
        join(current, run);
        return;
      }
    }
    schedule_.splits.push_back(std::move(run));
  }

  static void join(Split& split, const Split& more) {
    split.operations.insert(split.operations.end(), more.operations.begin(), more.operations.end());
    append(split.streamed, more.streamed);
    append(split.streamed_experts, more.streamed_experts);
    append(split.offloaded, more.offloaded);
    append(split.offloaded_experts, more.offloaded_experts);
    append(split.cache_up, more.cache_up);
    append(split.cache_down, more.cache_down);
    append(split.cache_fetched, more.cache_fetched);
    split.values.insert(split.values.end(), more.values.begin(), more.values.end());
    if (!more.streamed_experts.empty()) split.can_slice = false;
    if (split.first_layer < 0) split.first_layer = more.first_layer;
    split.n_layers += more.n_layers;
  }

  void finish(const std::vector<std::pair<Block, BlockPlacement>>& path, Device residual) {
    std::array<int64_t, kGraphInputCount> inputs{};
    for (size_t i = 1; i + 1 < path.size(); ++i) {
      for (const Value& value : path[i].first.values) {
        if (value.is_input) inputs[static_cast<size_t>(value.input)] = value.n_bytes;  // one tensor, shared by all layers
      }
    }
    const bool uses_gpu =
        std::any_of(schedule_.splits.begin(), schedule_.splits.end(), [](const Split& split) { return is_gpu(split.device); });
    for (const int64_t n_bytes : inputs) schedule_.input_bytes += uses_gpu ? n_bytes : 0;
    const Block& head = path.back().first;
    schedule_.output_device = residual;
    if (is_gpu(residual)) schedule_.output_bytes = head.values[static_cast<size_t>(head.residual_out)].n_bytes;
  }

  const Model& model_;
  const Placement& placement_;
  const Pass& pass_;
  Executed executed_;
  Schedule schedule_;
  std::map<std::pair<std::string, Device>, int32_t> tensors_;
};

}  // namespace

bool lane_is_taken(const Schedule& schedule, size_t split) {
  if (split == 0) return false;
  const Split& before = schedule.splits[split - 1];
  return before.streams() && before.lane == schedule.splits[split].lane;
}

std::optional<WeightType> kernel_type(const DataType& type) {
  const std::optional<WeightType> known = weight_type_of(type.id);
  return known && cpu_multiplies(*known) && gpu_multiplies(*known) ? known : std::nullopt;
}

Executed::Executed(const Model& model, const Pass& pass)
    : n_expert_(model.hyperparameters().n_expert), attends_(pass.flash_attn && pass.type_k.id == kF16 && pass.type_v.id == kF16) {
  for (const Layer& layer : model.layers()) {
    const LayerParameters& p = layer.parameters;
    if (p.n_head_kv == 0 || p.head_dim_k == 0) continue;
    attends_ = attends_ && p.head_dim_k == p.head_dim_v && p.head_dim_k % 16 == 0 && p.n_head % p.n_head_kv == 0;
  }
}

const char* Executed::why_not(const Operation& operation) const {
  if (operation.kind == OpKind::attention) {
    return attends_ && operation.cache_bytes > 0 ? nullptr : "attention that is not over an F16 cache of equal keys and values";
  }
  if (operation.kind == OpKind::copy && operation.output == kNoValue && operation.cache_bytes > 0) return nullptr;
  if (operation.kind == OpKind::scan) return "recurrent scans";
  if (operation.kind == OpKind::get_rows) return "look-ups of rows";
  if (!is_product(operation)) return "element-wise work, norms and copies";
  if (operation.weight == nullptr) return "products without weights";
  const std::optional<WeightType> type = kernel_type(operation.weight->type);
  if (!type) return "products of a weight type without a native kernel";
  const int64_t columns = std::max<int64_t>(format_of(*type).columns, 32);
  if (operation.k <= 0 || operation.n <= 0 || operation.m <= 0 || operation.k % columns != 0)
    return "products of a shape without a native kernel";
  const int64_t matrices = operation.kind == OpKind::mul_mat_id ? n_expert_ : 1;
  const bool is_whole =
      operation.weight_part_bytes == 0 && matrices * operation.n * row_bytes(*type, operation.k) == operation.weight->n_bytes;
  return is_whole ? nullptr : "products of a shape without a native kernel";
}

Schedule make_schedule(const Model& model, const Placement& placement, const Pass& pass, const std::vector<int64_t>& cache_bytes) {
  return Builder(model, placement, pass, cache_bytes).build();
}

}  // namespace pshard
