#include "cost/pass_cost.hpp"

#include <algorithm>
#include <deque>
#include <stdexcept>

namespace pshard {
namespace {

constexpr size_t kMaxPatterns = 255;

size_t index_of(const Neighbours& neighbours, Device residual) {
  const auto lane = [](Where where) { return is_pinned(where) ? size_t{0} : static_cast<size_t>(where); };
  return lane(neighbours.before) | lane(neighbours.after) << 2 | (is_gpu(residual) ? size_t{1} : size_t{0}) << 4;
}

}  // namespace

PassCost::PassCost(const Model& model, const Machines& machines, const Pass& pass, const Counted& counted)
    : model_(model), machines_(machines), pass_(pass) {
  const auto& layers = model_.layers();
  std::vector<std::pair<int32_t, bool>> variants;
  std::array<int64_t, kGraphInputCount> input_bytes{};
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::pair<int32_t, bool> variant{layers[i].layer_class, i + 1 == layers.size()};
    const auto known = std::find(variants.begin(), variants.end(), variant);
    layer_variant_.push_back(static_cast<int32_t>(known - variants.begin()));
    if (known != variants.end()) continue;
    variants.push_back(variant);
    blocks_.push_back(price_block(model_, machines_, pass_, layer_block(model_, layers[i], pass_, variant.second), counted));
    for (const Value& value : blocks_.back().block.values) {
      if (value.is_input) input_bytes[static_cast<size_t>(value.input)] = value.n_bytes;  // one tensor, shared by all layers
    }
  }
  head_block_ = price_block(model_, machines_, pass_, head_block(model_, pass_), counted);
  embedding_block_ = price_block(model_, machines_, pass_, embedding_block(model_, pass_), counted);
  embedding_ =
      place(embedding_block_, {.layer = LayerPlacement::uniform(Where::cpu), .head = Where::cpu, .op_offload = false, .ties_norms = false});
  path_.resize(layers.size() + 2);
  output_bytes_ = static_cast<double>(head_block_.block.values[static_cast<size_t>(head_block_.block.residual_out)].n_bytes);
  input_seconds_.assign(machines_.size(), 0.0);
  if (!machines_.host().has_gpu) return;
  for (const int64_t n_bytes : input_bytes) {
    input_bytes_ += static_cast<double>(n_bytes);
    for (size_t i = 0; i < machines_.size(); ++i) {
      input_seconds_[i] += machines_[i].up.seconds(static_cast<double>(n_bytes), static_cast<double>(n_bytes));
    }
  }
}

uint8_t PassCost::intern(const LayerPlacement& pattern) {
  const auto known = std::find(patterns_.begin(), patterns_.end(), pattern);
  if (known != patterns_.end()) return static_cast<uint8_t>(known - patterns_.begin());
  if (patterns_.size() == kMaxPatterns) throw std::length_error("more than 255 distinct layer placements in one search");
  patterns_.push_back(pattern);
  layers_.resize(patterns_.size() * blocks_.size() * 2);
  return static_cast<uint8_t>(patterns_.size() - 1);
}

PassCost::Placed PassCost::place(const PricedBlock& block, const BlockPlacement& placement) const {
  Placed placed;
  placed.placement = placement;
  placed.ends = block_ends(block.block, placement);
  placed.least = bound(block, model_, machines_.host(), placement);
  placed.host_bytes = static_cast<double>(host_home_bytes(block, placement));
  return placed;
}

const LoweredBlock& PassCost::lowered(const PricedBlock& block, Placed& placed, const Neighbours& neighbours, Device residual) const {
  auto& slot = placed.by_neighbourhood[index_of(neighbours, residual)];
  if (!slot) slot = lower(block, model_, machines_, placed.placement, neighbours, residual);
  return *slot;
}

PassCost::Placed& PassCost::placed_layer(size_t layer, uint8_t pattern, bool op_offload) {
  const auto variant = static_cast<size_t>(layer_variant_[layer]);
  auto& slot = layers_[(pattern * blocks_.size() + variant) * 2 + (op_offload ? 1 : 0)];
  if (!slot) {
    const bool offload = op_offload && machines_.host().has_gpu;
    slot = std::make_unique<Placed>(
        place(blocks_[variant], {.layer = patterns_[pattern], .head = Where::cpu, .op_offload = offload, .ties_norms = false}));
  }
  return *slot;
}

PassCost::Placed& PassCost::placed_head(Where where, bool op_offload) {
  auto& slot = heads_[(where == Where::pinned ? 2U : 0U) + (op_offload ? 1U : 0U)];
  if (!slot) {
    const bool offload = op_offload && machines_.host().has_gpu;
    slot = std::make_unique<Placed>(
        place(head_block_, {.layer = LayerPlacement::uniform(where), .head = where, .op_offload = offload, .ties_norms = false}));
  }
  return *slot;
}

double PassCost::unlocked_seconds_per_byte(double host_bytes) const {
  const Machine& host = machines_.host();
  const auto lockable = static_cast<double>(host.page_lock_bytes);
  if (!host.has_gpu || host_bytes <= lockable) return 0.0;
  const auto& rates = host.up.bytes_per_second;
  const double locked_rate = *std::max_element(rates.begin(), rates.end());
  const double unlocked = 1.0 - lockable / host_bytes;
  return unlocked * std::max(0.0, 1.0 / host.pageable_bytes_per_second - 1.0 / locked_rate);
}

PassTime PassCost::price(const InternedPlacement& placement, std::vector<SplitTime>* splits) {
  const size_t n_layer = placement.layer_pattern.size();
  path_.front() = &embedding_;
  for (size_t i = 0; i < n_layer; ++i) path_[i + 1] = &placed_layer(i, placement.layer_pattern[i], placement.op_offload);
  path_.back() = &placed_head(placement.head, placement.op_offload && placement.head_op_offload);
  return price_path(splits);
}

PassTime PassCost::price_path(std::vector<SplitTime>* splits) {
  ++n_priced_;
  double host_bytes = 0.0;
  for (const Placed* placed : path_) host_bytes += placed->host_bytes;
  Timeline timeline(machines_, unlocked_seconds_per_byte(host_bytes));
  if (splits != nullptr) timeline.record(*splits);
  Device residual = Device::host;
  Device first_gpu = Device::host;
  for (size_t i = 0; i < path_.size(); ++i) {
    const PricedBlock& block = i == 0                 ? embedding_block_
                               : i + 1 < path_.size() ? blocks_[static_cast<size_t>(layer_variant_[i - 1])]
                                                      : head_block_;
    const Neighbours neighbours{i == 0 ? Where::cpu : path_[i - 1]->ends.last,
                                i + 1 < path_.size() ? path_[i + 1]->ends.first : Where::cpu};
    const LoweredBlock& segments = lowered(block, *path_[i], neighbours, residual);
    for (const Segment& segment : segments.segments) {
      timeline.add(segment);
      if (!is_gpu(first_gpu)) first_gpu = device_of(segment.backend);
    }
    residual = segments.residual;
  }
  if (is_gpu(first_gpu)) timeline.add_inputs(input_bytes_, input_seconds_[machines_.index_of(first_gpu)]);
  if (is_gpu(residual)) timeline.add_outputs(output_bytes_, machines_.of(residual).down.seconds(output_bytes_, output_bytes_));
  return timeline.finish();
}

PassTime PassCost::price(const Placement& placement, std::vector<SplitTime>* splits) {
  machines_.check_covers(placement.n_gpu);
  const size_t n_layer = placement.layer_pattern.size();
  if (placement.exceptions.empty() && placement.n_gpu <= 1) {
    std::vector<uint8_t> ids;
    ids.reserve(n_layer);
    for (size_t i = 0; i < n_layer; ++i) ids.push_back(intern(placement.layer(i)));
    return price(
        InternedPlacement{
            .layer_pattern = ids, .head = placement.head, .op_offload = placement.op_offload, .head_op_offload = placement.head_op_offload},
        splits);
  }
  // Tables are by pattern alone, on one GPU.
  const bool offload = placement.op_offload && machines_.host().has_gpu;
  const LayerPlacement no_layer = LayerPlacement::uniform(Where::cpu);
  std::deque<Placed> placed;
  const auto lay = [&](size_t at, const PricedBlock& block, const LayerPlacement& layer, Where head, bool offloads, size_t exceptions) {
    placed.push_back(
        place(block, {.layer = layer, .head = head, .op_offload = offloads, .exceptions = exceptions_of(placement, exceptions)}));
    path_[at] = &placed.back();
  };
  lay(0, embedding_block_, no_layer, Where::cpu, false, kNoLayer);
  for (size_t i = 0; i < n_layer; ++i) {
    lay(i + 1, blocks_[static_cast<size_t>(layer_variant_[i])], placement.layer(i), Where::cpu, offload, i);
  }
  lay(n_layer + 1, head_block_, LayerPlacement::uniform(placement.head), placement.head, offload && placement.head_op_offload, kNoLayer);
  return price_path(splits);
}

PassBound PassCost::layer_bound(size_t layer, uint8_t pattern, bool op_offload) { return placed_layer(layer, pattern, op_offload).least; }

PassBound PassCost::bound_behind(size_t layer, uint8_t previous_pattern, uint8_t pattern, bool op_offload) {
  // The embedding lies before the first layer, on the host.
  const BlockEnds before = layer == 0 ? BlockEnds{} : placed_layer(layer - 1, previous_pattern, op_offload).ends;
  const BlockEnds after = placed_layer(layer, pattern, op_offload).ends;
  return bound_between(blocks_[static_cast<size_t>(layer_variant_[layer])], machines_.host(), before, after);
}

PassBound PassCost::ends_bound(Where where, bool op_offload) const {
  const BlockPlacement placement{
      .layer = LayerPlacement::uniform(where), .head = where, .op_offload = op_offload && machines_.host().has_gpu, .ties_norms = false};
  PassBound least = bound(head_block_, model_, machines_.host(), placement);
  least += embedding_.least;
  const bool logits_on_gpu = block_ends(head_block_.block, placement).last != Where::cpu;
  if (logits_on_gpu) least.serial_seconds += machines_.host().down.seconds(output_bytes_, output_bytes_);
  return least;
}

PassBound PassCost::gpu_use_bound() const {
  PassBound least;
  least.serial_seconds = least.up_seconds = input_seconds_.front();
  return least;
}

}  // namespace pshard
