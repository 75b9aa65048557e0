#include "memory/compute_buffers.hpp"

#include <algorithm>

#include "model/block_builder.hpp"

namespace pshard {

namespace {

constexpr size_t kNeighbourhoods = 4;

size_t index_of(const Neighbours& neighbours) {
  const auto bit = [](Device device) { return device == Device::gpu ? size_t{1} : size_t{0}; };
  return bit(neighbours.before) | bit(neighbours.after) << 1;
}

int64_t block_floor(const Block& block, const BlockPlacement& placement) {
  int64_t floor = 0;
  const std::vector<ScheduledOperation> scheduled = schedule(block, placement, {});
  for (size_t i = 0; i < block.operations.size(); ++i) {
    const Operation& operation = block.operations[i];
    if (!scheduled[i].decided || scheduled[i].device != Device::gpu || operation.is_view || operation.output == kNoValue) continue;
    const int64_t copied = scheduled[i].copies_weight ? operation.weight->n_bytes : 0;
    floor = std::max(floor, copied + block.values[static_cast<size_t>(operation.output)].n_bytes);
  }
  return floor;
}

// Of what differs most between states; equality decides.
size_t hash_of(const ReplayState& state) {
  size_t hash = 0;
  const auto mix = [&](int64_t value) { hash = (hash ^ static_cast<size_t>(value)) * 0x9e3779b97f4a7c15ULL; };
  mix(state.gpu.extent());
  mix(state.host.extent());
  mix(state.residual_offset);
  for (const int64_t offset : state.streamed) mix(offset);
  return hash;
}

}  // namespace

ComputeBuffers::ComputeBuffers(const Model& model, const ContextParameters& context, int64_t n_tokens) {
  const Pass pass = reserved_pass(model, context, n_tokens);
  const std::vector<Layer>& layers = model.layers();
  const auto n_classes = static_cast<size_t>(model.n_layer_classes());
  std::vector<bool> described(n_classes);
  blocks_.resize(n_classes + 3);
  slot_bytes_.resize(n_classes + 3);
  for (const Layer& layer : layers) {
    const auto index = static_cast<size_t>(layer.layer_class);
    layer_block_.push_back(index);
    if (described[index]) continue;
    described[index] = true;
    blocks_[index] = layer_block(model, layer, pass, false);
    slot_bytes_[index] = cache_bytes(model, layer, context);
  }
  layer_block_.back() = n_classes;
  blocks_[n_classes] = layer_block(model, layers.back(), pass, true);
  slot_bytes_[n_classes] = cache_bytes(model, layers.back(), context);
  blocks_[n_classes + 1] = embedding_block(model, pass);
  blocks_[n_classes + 2] = head_block(model, pass);
  path_.resize(layers.size() + 2);
  if (context.casts_mask && context.flash_attn) cast_inputs_ = input_bit(GraphInput::mask) | input_bit(GraphInput::mask_window);

  // Before the pass the host holds the graph inputs, and room for embeddings that may be given instead of tokens.
  ReplayState start;
  const auto hold_inputs = [&](const Block& block) {
    for (const Value& value : block.values) {
      const auto i = static_cast<size_t>(value.input);
      if (!value.is_input || start.host_inputs[i] != kNowhere) continue;
      input_bytes_[i] = value.n_bytes;
      start.host_inputs[i] = start.host.allocate(value.n_bytes);
    }
  };
  hold_inputs(blocks_[n_classes + 1]);
  static_cast<void>(start.host.allocate(model.hyperparameters().n_embd * kActivationBytes * pass.n_tokens));
  for (const Block& block : blocks_) hold_inputs(block);
  states_.push_back({.state = start, .transitions = {}});
}

size_t ComputeBuffers::pattern_index(const BlockPlacement& placement) {
  for (size_t i = 0; i < patterns_.size(); ++i) {
    if (patterns_[i].placement == placement) return i;
  }
  Pattern pattern{.placement = placement, .ends = {}, .cells = std::vector<Cell>(blocks_.size() * kNeighbourhoods)};
  for (const Block& block : blocks_) pattern.ends.push_back(block_ends(block, placement, Device::host));
  patterns_.push_back(std::move(pattern));
  return patterns_.size() - 1;
}

size_t ComputeBuffers::state_index(const ReplayState& state) {
  const size_t hash = hash_of(state);
  const auto [first, last] = states_by_hash_.equal_range(hash);
  for (auto known = first; known != last; ++known) {
    if (states_[known->second].state == state) return known->second;
  }
  states_by_hash_.emplace(hash, states_.size());
  states_.push_back({.state = state, .transitions = {}});
  return states_.size() - 1;
}

// Searches hand over the same patterns again and again, so they are looked up once.
void ComputeBuffers::intern_patterns(const Placement& placement) {
  if (placement.patterns == interned_ && placement.op_offload == interned_op_offload_) return;
  interned_ = placement.patterns;
  interned_op_offload_ = placement.op_offload;
  placement_pattern_.clear();
  for (const LayerPlacement& layer : placement.patterns) {
    placement_pattern_.push_back(pattern_index({.layer = layer, .outside = Where::cpu, .op_offload = placement.op_offload}));
  }
}

void ComputeBuffers::lay_path(const Placement& placement) {
  intern_patterns(placement);
  const auto lay = [](Step& step, size_t block, size_t pattern) {
    step.block = block;
    step.pattern = pattern;
  };
  lay(path_.front(), blocks_.size() - 2, placement_pattern_[placement.layer_pattern.front()]);
  for (size_t i = 0; i < layer_block_.size(); ++i) lay(path_[i + 1], layer_block_[i], placement_pattern_[placement.layer_pattern[i]]);
  const LayerPlacement no_layer = LayerPlacement::uniform(Where::cpu);
  lay(path_.back(), blocks_.size() - 1,
      pattern_index({.layer = no_layer, .outside = placement.head, .op_offload = placement.op_offload && placement.head_op_offload}));

  Neighbours neighbours;
  for (size_t i = 0; i < path_.size(); ++i) {
    Step& step = path_[i];
    neighbours.after = i + 1 < path_.size() ? patterns_[path_[i + 1].pattern].ends[path_[i + 1].block].first : Device::host;
    Pattern& pattern = patterns_[step.pattern];
    Cell& cell = pattern.cells[step.block * kNeighbourhoods + index_of(neighbours)];
    if (!cell.known) {
      cell.scheduled = schedule_block(blocks_[step.block], pattern.placement, neighbours, slot_bytes_[step.block]);
      cell.known = true;
    }
    step.cell = &cell;
    neighbours.before = pattern.ends[step.block].last;
  }
}

// Fills in what each block must know of the later ones.
void ComputeBuffers::look_ahead() {
  InputBits ahead = 0;
  InputBits later_gpu = 0;
  const StreamedCopies* behind = nullptr;
  for (size_t i = path_.size(); i-- > 0;) {
    const ScheduledBlock& block = path_[i].cell->scheduled;
    const bool continues = i > 0 && block.continues_split && !path_[i - 1].cell->scheduled.ends_streamed;
    path_[i].outlook = {
        .continues = continues, .ahead = ahead, .streamed = nullptr, .last_gpu = block.gpu_inputs & ~later_gpu, .last_host = 0};
    later_gpu |= block.gpu_inputs;
    ahead = continues ? block.first_split_gpu_inputs | (block.one_split ? ahead : 0) : 0;
    if (continues && block.one_split) continue;  // the split that ends here was opened by a block before
    path_[i].outlook.streamed = behind;
    const size_t next = continues ? 1 : 0;  // of this block's splits, seen from the block before
    behind = next < block.streamed.size() && !block.streamed[next].empty() ? &block.streamed[next] : nullptr;
  }
  InputBits copied = 0;
  for (Step& step : path_) {
    const InputBits wanted = step.cell->scheduled.gpu_inputs | step.outlook.ahead;
    step.outlook.last_host = step.cell->scheduled.host_inputs | (wanted & ~copied);
    copied |= wanted;
  }
  InputBits later_host = 0;
  for (size_t i = path_.size(); i-- > 0;) {
    const InputBits used = path_[i].outlook.last_host;
    path_[i].outlook.last_host = used & ~later_host;
    later_host |= used;
  }
}

size_t ComputeBuffers::variant_index(Cell& cell, const ReplayOutlook& outlook) {
  for (const Variant& variant : cell.variants) {
    if (variant.outlook == outlook) return variant.id;
  }
  cell.variants.push_back({.outlook = outlook, .id = n_variants_++});
  return cell.variants.back().id;
}

const ComputeBuffers::Transition& ComputeBuffers::advance(size_t state, const Step& step) {
  const size_t variant = variant_index(*step.cell, step.outlook);
  for (const Transition& transition : states_[state].transitions) {
    if (transition.variant == variant) return transition;
  }
  ReplayState next = states_[state].state;
  const ReplayPeaks peaks = replay(step.cell->scheduled, step.outlook, input_bytes_, cast_inputs_, next);
  const size_t next_index = state_index(next);  // may move states_
  ++n_replays_;
  return states_[state].transitions.emplace_back(Transition{.variant = variant, .next = next_index, .peaks = peaks});
}

ComputeBytes ComputeBuffers::operator()(const Placement& placement) {
  lay_path(placement);
  look_ahead();
  ComputeBytes result;
  size_t state = 0;
  int64_t last_stream_bytes = 0;
  for (const Step& step : path_) {
    const ScheduledBlock& block = step.cell->scheduled;
    const Transition& transition = advance(state, step);
    result.gpu_bytes = std::max(result.gpu_bytes, transition.peaks.gpu_bytes);
    for (const StreamedCopies& split : block.streamed) {
      int64_t bytes = 0;
      for (const StreamedCopy& copy : split) bytes += copy.n_bytes;
      result.gpu_stream_bytes = std::max(result.gpu_stream_bytes, last_stream_bytes + bytes);
      last_stream_bytes = bytes;
    }
    result.host_bytes = std::max(result.host_bytes, transition.peaks.host_bytes);
    state = transition.next;
  }
  result.host_bytes = std::max(result.host_bytes, states_.front().state.host.extent());
  return result;
}

int64_t ComputeBuffers::gpu_floor(size_t layer, const LayerPlacement& placement, bool op_offload) const {
  return block_floor(blocks_[layer_block_[layer]], {.layer = placement, .outside = Where::cpu, .op_offload = op_offload});
}

int64_t ComputeBuffers::gpu_floor_of_head(Where head, bool op_offload) const {
  return block_floor(blocks_.back(), {.layer = LayerPlacement::uniform(Where::cpu), .outside = head, .op_offload = op_offload});
}

}  // namespace pshard
