#include "memory/compute_buffers.hpp"

#include <algorithm>

#include "memory/live_bytes.hpp"
#include "model/graph.hpp"

namespace pshard {

namespace {

constexpr size_t kUnknownPattern = SIZE_MAX;

// Whatever lies around the block: only what it decides itself is sure to run where it says.
int64_t block_floor(const Block& block, const BlockPlacement& placement) {
  std::vector<ScheduledOperation> scheduled = schedule(block, placement, {});
  for (ScheduledOperation& operation : scheduled) {
    if (!operation.decided) operation.device = Device::host;
  }
  const std::vector<int64_t> live = live_gpu_bytes(block, scheduled);
  return live.empty() ? 0 : *std::max_element(live.begin(), live.end());
}

// Where an attention weight of the first layer is.
Where place_in_first_layer(const Tensor& weight, const Placement& placement) {
  for (const TensorException& exception : placement.exceptions) {
    if (exception.name == weight.name) return exception.where;
  }
  return placement.layer(0)[Group::attention];
}

// Of what differs most between states; equality decides.
size_t hash_of(const ReplayState& state) {
  size_t hash = 0;
  const auto mix = [&](int64_t value) { hash = (hash ^ static_cast<size_t>(value)) * 0x9e3779b97f4a7c15ULL; };
  for (const Arena& arena : state.arenas) mix(arena.extent());
  mix(state.residual_offset);
  for (const ReplayState::HandedOn& handed : state.handed) mix(handed.offset);
  for (const int64_t offset : state.next.weights) mix(offset);
  return hash;
}

}  // namespace

ComputeBuffers::ComputeBuffers(const Model& model, const ContextParameters& context, int64_t n_tokens, int n_gpu)
    : n_states_(model.hyperparameters().n_states),
      has_encoder_(model.hyperparameters().traits.has_encoder),
      n_devices_(static_cast<size_t>(n_gpu) + 1) {
  const Pass pass = reserved_pass(model, context, n_tokens);
  few_tokens_ = pass.n_tokens < kOffloadMinTokens;
  const std::vector<Layer>& layers = model.layers();
  for (size_t i = 0; i < layers.size(); ++i) describe_layer(model, context, pass, i);
  loads_before_norm_ = loads_state_before_norm(model);
  blocks_.push_back(embedding_block(model, pass, loads_before_norm_ ? &layers.front() : nullptr));
  blocks_.push_back(head_block(model, pass));
  cache_bytes_.resize(blocks_.size());
  path_.resize(layers.size() + 2);
  if (pass.pshard_runtime && pass.flash_attn) cast_inputs_ = input_bit(GraphInput::mask) | input_bit(GraphInput::mask_window);

  for (const Block& block : blocks_) {
    for (const Operation& operation : block.operations) {
      if (operation.is_first_layers) reads_first_layer_ = operation.weight;
      if (reads_rope_factors(operation)) input_bytes_[static_cast<size_t>(GraphInput::rope_factors)] = operation.weight->n_bytes;
    }
  }
  list_leaves();
  const Hyperparameters& h = model.hyperparameters();
  embeddings_bytes_ = h.n_embd * (1 + h.n_deepstack) * kActivationBytes * pass.n_tokens;
  for (size_t place = 0; place < ReplayState(n_gpu).inputs.size(); ++place) places_.push_back(static_cast<Where>(place));
  if (has_rooms_) return;
  for (const bool pipeline : {false, true}) states_.push_back({.state = state_before(pipeline), .transitions = {}});
}

void ComputeBuffers::list_leaves() {
  InputBits listed = 0;
  const auto list = [&](size_t step, const Block& block) {
    for (const int32_t leaf : block.leaves) {
      const Value& value = block.values[static_cast<size_t>(leaf)];
      has_rooms_ = has_rooms_ || value.is_room;
      if (value.is_input) {
        input_bytes_[static_cast<size_t>(value.input)] = value.n_bytes;
        if ((listed & input_bit(value.input)) != 0) continue;
        listed |= input_bit(value.input);
      }
      leaves_.push_back({.step = step, .value = leaf, .input = value.input, .n_bytes = value.n_bytes});
    }
  };
  list(0, blocks_[blocks_.size() - 2]);
  for (size_t i = 0; i < layer_block_.size(); ++i) list(i + 1, blocks_[layer_block_[i]]);
  list(path_.size() - 1, blocks_.back());
}

// Before the pass the host holds the graph inputs, and behind the tokens room for embeddings that may be given instead; other rooms are
// where they are read.
ReplayState ComputeBuffers::state_before(bool pipeline) const {
  ReplayState state(static_cast<int>(n_devices_) - 1);
  ReplayState::InputOffsets& inputs = state.inputs_in(Where::cpu);
  const auto hold = [&](int64_t n_bytes) {
    Arena& host = state.arena(Where::cpu);
    const int64_t offset = host.allocate(n_bytes);
    for (int64_t copy = 1; pipeline && copy < kPipelineCopies; ++copy) static_cast<void>(host.allocate(n_bytes));
    return offset;
  };
  const bool is_given_states = input_bytes_[static_cast<size_t>(GraphInput::given)] > 0;  // beside tokens
  for (const Leaf& leaf : leaves_) {
    if (leaf.input == GraphInput::none) {
      const Where home = path_[leaf.step].scheduled().homes[static_cast<size_t>(leaf.value)];
      state.rooms.push_back(state.arena(home).allocate(leaf.n_bytes));
      continue;
    }
    if (leaf.n_bytes > 0) inputs[static_cast<size_t>(leaf.input)] = hold(leaf.n_bytes);
    if (leaf.input == GraphInput::tokens && !is_given_states) hold(embeddings_bytes_);
  }
  return state;
}

// Layers of one class share a block, unless a layer behind them reads its state here.
void ComputeBuffers::describe_layer(const Model& model, const ContextParameters& context, const Pass& pass, size_t index) {
  const std::vector<Layer>& layers = model.layers();
  const Layer& layer = layers[index];
  const bool is_last = index + 1 == layers.size();
  size_t reader = index + 1;
  while (reader < layers.size() && is_put_off(layers[reader])) ++reader;
  const bool early = reader < layers.size() && reads_state_early(layers[reader].parameters);
  const bool loads = early && !is_put_off(layer);
  const bool loads_own = reads_state_early(layer.parameters) && !loads_state_before_norm(model) &&
                         std::all_of(layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(index), is_put_off);
  const bool passes = early && !loads &&
                      std::any_of(layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(index),
                                  [](const Layer& before) { return !is_put_off(before); });
  const int64_t embeddings_part = static_cast<int64_t>(index) < model.hyperparameters().n_deepstack ? static_cast<int64_t>(index) + 1 : 0;
  const LayerParameters* behind = is_last ? nullptr : &layers[index + 1].parameters;
  const bool passes_selection = behind != nullptr && behind->is_selective && behind->indexer_dim == 0;
  const BlockKey key{.layer_class = layer.layer_class,
                     .loads_for = loads ? layers[reader].layer_class : -1,
                     .passes_for = passes ? layers[reader].layer_class : -1,
                     .is_last = is_last,
                     .loads_own_state = loads_own,
                     .embeddings_part = embeddings_part,
                     .passes_selection = passes_selection};
  const auto known = std::find(block_keys_.begin(), block_keys_.end(), key);
  loads_state_of_.push_back(loads ? reader : kNoLayer);
  shared_cache_.push_back(layer.parameters.shared_cache);
  layer_block_.push_back(static_cast<size_t>(known - block_keys_.begin()));
  if (known != block_keys_.end()) return;
  block_keys_.push_back(key);
  const int32_t cache = layer.parameters.shared_cache >= 0 ? layer.parameters.shared_cache : static_cast<int32_t>(index);
  const LayerChain chain{.loads_for = loads ? &layers[reader] : nullptr,
                         .passes_for = passes ? &layers[reader] : nullptr,
                         .state_is_loaded = !loads_own,
                         .passes_selection = passes_selection,
                         .embeddings_part = embeddings_part};
  blocks_.push_back(layer_block(model, layer, pass, is_last, chain));
  cache_bytes_.push_back(cache_tensor_bytes(model, layers[static_cast<size_t>(cache)], context));
}

size_t ComputeBuffers::pattern_index(const BlockPlacement& placement) {
  for (size_t i = 0; i < patterns_.size(); ++i) {
    if (patterns_[i].placement == placement) return i;
  }
  Pattern pattern{.placement = placement, .ends = {}, .cells = {}};
  pattern.cells.resize(blocks_.size());
  for (const Block& block : blocks_) pattern.ends.push_back(block_ends(block, placement));
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

ComputeBuffers::Cell& ComputeBuffers::cell(size_t pattern, size_t block, const Neighbours& neighbours) {
  std::vector<std::unique_ptr<Cell>>& cells = patterns_[pattern].cells[block];
  for (const auto& known : cells) {
    if (known->neighbours == neighbours) return *known;
  }
  cells.push_back(std::make_unique<Cell>());
  Cell& made = *cells.back();
  made.neighbours = neighbours;
  made.scheduled = schedule_block(blocks_[block], patterns_[pattern].placement, neighbours, cache_bytes_[block], cast_inputs_);
  return made;
}

// Searches hand over the same patterns again and again, so they are looked up once: each by itself, and with a layer behind it whose state
// it reads, by that one's pattern.
void ComputeBuffers::intern_patterns(const Placement& placement, Ties ties) {
  if (placement.patterns == interned_ && placement.op_offload == interned_op_offload_ && ties == interned_ties_) return;
  interned_ = placement.patterns;
  interned_op_offload_ = placement.op_offload;
  interned_ties_ = ties;
  placement_pattern_.assign(interned_.size() * (interned_.size() + 1), kUnknownPattern);
}

size_t ComputeBuffers::layer_pattern(const Placement& placement, size_t layer, size_t loads_state_of) {
  const size_t own = placement.layer_pattern[layer];
  const bool loads = loads_state_of != kNoLayer;
  const size_t next = loads ? placement.layer_pattern[loads_state_of] : interned_.size();
  const int32_t shared_cache = shared_cache_[layer];
  LayerPlacement where = interned_[own];
  if (shared_cache >= 0) where[Group::cache] = placement.layer(static_cast<size_t>(shared_cache))[Group::cache];
  const bool makes_states = layer == 0 && n_states_ > 1;  // by a weight of the head
  const auto find = [&](std::vector<TensorException> exceptions) {
    return pattern_index(
        {.layer = where,
         .head = makes_states ? placement.head : Where::cpu,
         .op_offload = interned_op_offload_,
         .ties_norms = interned_ties_.norms,
         .ties_heads = interned_ties_.heads,
         .next_cache = loads ? interned_[next][Group::cache] : Where::cpu,
         .exceptions = std::move(exceptions),
         .first_attention = reads_first_layer_ ? std::optional(place_in_first_layer(*reads_first_layer_, placement)) : std::nullopt});
  };
  if (!placement.exceptions.empty() || shared_cache >= 0 || makes_states || reads_first_layer_)
    return find(exceptions_of(placement, layer, has_encoder_));
  size_t& pattern = placement_pattern_[own * (interned_.size() + 1) + next];
  if (pattern == kUnknownPattern) pattern = find({});
  return pattern;
}

// Its norm goes with the first layer's device, wherever that layer's own norms are.
size_t ComputeBuffers::embedding_pattern(const Placement& placement) {
  LayerPlacement first = placement.layer(0);
  const bool is_first = first[Group::norms] == first.device && placement.exceptions.empty();
  if (is_first && !loads_before_norm_) return layer_pattern(placement, 0, kNoLayer);
  first[Group::norms] = first.device;
  return pattern_index({.layer = first,
                        .head = Where::cpu,
                        .op_offload = interned_op_offload_,
                        .ties_norms = interned_ties_.norms,
                        .ties_heads = interned_ties_.heads,
                        .next_cache = first[Group::cache],
                        .exceptions = exceptions_of(placement, kNoLayer)});
}

void ComputeBuffers::lay_path(const Placement& placement, Ties ties) {
  intern_patterns(placement, ties);
  const auto lay = [](Step& step, size_t block, size_t pattern) {
    step.block = block;
    step.pattern = pattern;
  };
  lay(path_.front(), blocks_.size() - 2, embedding_pattern(placement));
  for (size_t i = 0; i < layer_block_.size(); ++i) lay(path_[i + 1], layer_block_[i], layer_pattern(placement, i, loads_state_of_[i]));
  const LayerPlacement no_layer = LayerPlacement::uniform(Where::cpu);
  const bool offloads_head = placement.op_offload && placement.head_op_offload;
  lay(path_.back(), blocks_.size() - 1,
      pattern_index({.layer = no_layer,
                     .head = placement.head,
                     .op_offload = offloads_head,
                     .ties_norms = false,
                     .next_cache = Where::cpu,
                     .exceptions = exceptions_of(placement, kNoLayer)}));

  Neighbours neighbours;
  neighbours.split_reads = false;
  for (size_t i = 0; i < path_.size(); ++i) {
    Step& step = path_[i];
    neighbours.after = i + 1 < path_.size() ? patterns_[path_[i + 1].pattern].ends[path_[i + 1].block].first : Where::cpu;
    step.cell = &cell(step.pattern, step.block, neighbours);
    neighbours.before = patterns_[step.pattern].ends[step.block].last;
    neighbours.last_lane.reset();  // in a lane that streams, what its own blocks decide
    const Where last_lane = step.scheduled().last_lane;
    if (!is_streamed(last_lane) && !is_streamed(neighbours.before)) neighbours.last_lane = last_lane;
    const InputsByDevice& copied = step.scheduled().copied_inputs;
    for (size_t d = 0; d < copied.size(); ++d) neighbours.copied_inputs[d] |= copied[d];
    neighbours.split_reads = step.scheduled().split_reads;
    step.scheduled().hand_on_shared(neighbours);
  }
}

// Fills in what each block must know of the later ones.
void ComputeBuffers::look_ahead(bool pipeline) {
  const ScheduledBlock* before = nullptr;
  for (Step& step : path_) {
    const ScheduledBlock& block = step.scheduled();
    step.outlook.pipeline = pipeline;
    step.outlook.continues = before != nullptr && block.may_continue && before->last_lane == block.first_lane;
    before = &block;
  }
  look_ahead_at_lanes();
  look_ahead_at_inputs();
}

// What two parts of one split bring.
const StreamedCopies* ComputeBuffers::joined(const StreamedCopies& part, const StreamedCopies* rest) {
  if (rest == nullptr || rest->empty()) return part.empty() ? nullptr : &part;
  if (part.empty()) return rest;
  StreamedCopies whole = part;
  whole.weights.insert(whole.weights.end(), rest->weights.begin(), rest->weights.end());
  whole.cache_bytes.insert(whole.cache_bytes.end(), rest->cache_bytes.begin(), rest->cache_bytes.end());
  const auto known = std::find(joined_.begin(), joined_.end(), whole);
  return known != joined_.end() ? &*known : &joined_.emplace_back(std::move(whole));
}

void ComputeBuffers::look_ahead_at_lanes() {
  const StreamedCopies* first = nullptr;   // for the split in which the block behind begins, from there on
  const StreamedCopies* second = nullptr;  // and for the one after it
  bool goes_on = false;                    // the block behind continues the split
  for (size_t i = path_.size(); i-- > 0;) {
    const std::vector<StreamedCopies>& splits = path_[i].scheduled().streamed;
    ReplayOutlook& outlook = path_[i].outlook;
    outlook.last = joined(splits.back(), goes_on ? first : nullptr);
    outlook.behind = goes_on ? second : first;
    const auto complete = [&](size_t split) {
      if (split == splits.size()) return outlook.behind;
      if (split + 1 == splits.size()) return outlook.last;
      return joined(splits[split], nullptr);
    };
    first = complete(0);
    second = complete(1);
    goes_on = outlook.continues;
  }
}

void ComputeBuffers::look_ahead_at_inputs() {
  std::array<Where, kHandedCount> homes{};
  for (Step& step : path_) {
    const ScheduledBlock& scheduled = step.scheduled();
    step.handed_homes = homes;
    for (size_t b = 0; b < kHandedCount; ++b) {
      const Handed& handed = scheduled.block->handed[b];
      if (handed.out != kNoValue && !handed.passes()) homes[b] = scheduled.homes[static_cast<size_t>(handed.out)];
    }
  }
  ReadsAhead ahead;
  std::array<bool, kHandedCount> reads{};  // the originals, in blocks behind
  uint32_t whole_reads = 0;
  PerPlace<InputBits> later{};
  for (size_t i = path_.size(); i-- > 0;) {
    const ScheduledBlock& block = path_[i].scheduled();
    ReplayOutlook& outlook = path_[i].outlook;
    outlook.ahead = ahead;
    outlook.whole_reads = whole_reads;
    whole_reads |= block.whole_reads;
    for (const Where place : places_) {
      outlook.last_reads[place] = block.inputs[place] & ~later[place];
      later[place] |= block.inputs[place];
    }
    const auto is_here = [&](size_t b) { return path_[i].handed_homes[b] == place_on(device_of(block.first_lane)); };
    for (size_t b = 0; b < kHandedCount; ++b) {
      const Handed& handed = block.block->handed[b];
      outlook.ends[b] = handed.out != kNoValue && ahead.reads_part(static_cast<Beside>(b)) && !reads[b];
      const bool was_copied = outlook.continues && !is_here(b);
      const bool reads_first = block.first_split.reads_part(static_cast<Beside>(b)) && !was_copied;
      reads[b] = block.reads_later[b] || reads_first || (handed.passes() && reads[b]);
    }
    ahead = {};
    if (!outlook.continues) continue;
    ahead = block.first_split;
    std::erase_if(ahead.copies, [&](const CopyAhead& copy) { return copy.of && is_here(static_cast<size_t>(*copy.of)); });
    if (block.streamed.size() == 1) ahead.append(outlook.ahead);
  }
  look_ahead_at_shared();
  // The host's originals are read by its own operations and by every copy that is made of them.
  PerPlace<InputBits> copied{};
  for (Step& step : path_) {
    PerPlace<InputBits> wanted = step.scheduled().inputs;
    const Where lane = step.scheduled().last_lane;
    if (lane != Where::cpu) {
      const InputBits cast = is_streamed(lane) ? step.outlook.ahead.bits() & cast_inputs_ : 0;
      wanted[Where::pinned] |= cast;
      wanted[lane] |= step.outlook.ahead.bits() & ~cast;
    }
    InputBits& read = step.outlook.last_reads[Where::cpu];
    read = wanted[Where::cpu] | step.scheduled().viewed_later;
    const bool opens_last = !step.outlook.continues || step.scheduled().streamed.size() > 1;  // the split that goes on behind it
    if (opens_last) read |= step.outlook.ahead.viewed();
    if (!step.outlook.continues) read |= step.scheduled().first_split.viewed();
    for (const Where place : places_) {
      if (place == Where::cpu) continue;
      read |= wanted[place] & ~copied[place];
      copied[place] |= wanted[place];
    }
    // Rope factors on the host are a copy of a GPU's, and no other copies are made of it.
    constexpr InputBits kFactors = input_bit(GraphInput::rope_factors);
    read = (read & ~kFactors) | (wanted[Where::cpu] & kFactors);
  }
  InputBits later_host = 0;
  for (size_t i = path_.size(); i-- > 0;) {
    InputBits& last = path_[i].outlook.last_reads[Where::cpu];
    const InputBits read = last;
    last &= ~later_host;
    later_host |= read;
  }
}

// What is shared as a whole is read where it is, or once for each place that gets a copy of it: until the last of these it stays.
void ComputeBuffers::look_ahead_at_shared() {
  constexpr auto kShared = static_cast<size_t>(Beside::shared);
  Step* last = nullptr;  // that reads the original
  bool is_ahead = false;
  uint32_t copies = 0;  // bits of places
  Where home = Where::cpu;
  const auto end = [&](const Step& where) {
    if (last == nullptr || last == &where) return;
    (is_ahead ? last->outlook.ends[kShared] : last->outlook.drops_shared) = true;
    for (Step* step = last + 1; step <= &path_.back() && step->scheduled().block->handed[kShared].passes(); ++step) {
      step->outlook.drops_shared = true;
    }
  };
  for (Step& step : path_) {
    const ScheduledBlock& block = step.scheduled();
    const Handed& handed = block.block->handed[kShared];
    const auto read = [&](uint32_t places, bool ahead) {
      if (places == 0 || (places & ~copies) == 0) return;
      last = &step;
      is_ahead = ahead;
      copies |= places & ~place_bit(home);
    };
    read(block.whole_reads, false);
    if (handed.out != kNoValue && !handed.passes()) {
      end(step);
      home = block.homes[static_cast<size_t>(handed.out)];
      copies = 0;
      last = nullptr;
    }
    if (handed.out != kNoValue && step.outlook.ahead.reads_whole()) read(place_bit(place_on(device_of(block.last_lane))), true);
    if (handed.out != kNoValue) continue;
    end(step);
    last = nullptr;
  }
}

size_t ComputeBuffers::variant_index(Cell& cell, const ReplayOutlook& outlook) {
  for (const Variant& variant : cell.variants) {
    if (variant.outlook == outlook) return variant.id;
  }
  cell.variants.push_back({.outlook = outlook, .id = n_variants_++});
  return cell.variants.back().id;
}

ComputeBuffers::Transition ComputeBuffers::advance(size_t state, const Step& step) {
  const size_t variant = variant_index(*step.cell, step.outlook);
  for (const Transition& transition : states_[state].transitions) {
    if (transition.variant == variant) return transition;
  }
  replayed_ = states_[state].state;
  peaks_.push_back(replay(step.scheduled(), step.outlook, input_bytes_, replayed_));
  const size_t next = state_index(replayed_);  // may move states_
  ++n_replays_;
  return states_[state].transitions.emplace_back(Transition{.variant = variant, .next = next, .peaks = peaks_.size() - 1});
}

ComputeBytes ComputeBuffers::running(const Placement& placement) {
  return bytes(placement, {.norms = few_tokens_ || placement.offloads_all, .heads = !placement.offload_kqv});
}

ComputeBytes ComputeBuffers::bytes(const Placement& placement, Ties ties) {
  lay_path(placement, ties);
  look_ahead(placement.pipeline);
  ComputeBytes result;
  size_t state = has_rooms_ ? state_index(state_before(placement.pipeline)) : placement.pipeline ? 1 : 0;
  ReplayPeaks total{};
  int64_t last_stream_bytes = 0;
  for (const Step& step : path_) {
    const Transition transition = advance(state, step);
    const ReplayPeaks& peaks = peaks_[transition.peaks];
    for (size_t d = 0; d < n_devices_; ++d) {
      total[d].bytes = std::max(total[d].bytes, peaks[d].bytes);
      total[d].kept += peaks[d].kept;
    }
    for (const int64_t bytes : step.scheduled().stream_bytes) {
      result.gpu_stream_bytes = std::max(result.gpu_stream_bytes, last_stream_bytes + bytes);
      last_stream_bytes = bytes;
    }
    state = transition.next;
  }
  result.host_bytes = total.front().bytes + total.front().kept;
  for (size_t d = 1; d < n_devices_; ++d) result.gpu_bytes[d - 1] = total[d].bytes + total[d].kept;
  return result;
}

// While a split runs, what the next one reads arrives.
int64_t ComputeBuffers::gpu_at_least(const Placement& placement) {
  lay_path(placement, {});
  int64_t least = 0;
  int64_t last_split = 0;
  for (const Step& step : path_) {
    const ScheduledBlock& block = step.scheduled();
    for (size_t split = 0; split < block.streamed.size(); ++split) {
      least = std::max(least, last_split + block.stream_bytes[split]);
      last_split = block.live_bytes[split];
    }
  }
  return std::max(least, last_split);
}

bool ComputeBuffers::attends_in_place(const Placement& placement) {
  lay_path(placement, {.norms = few_tokens_ || placement.layer(0).device != Where::cpu});
  for (size_t i = 0; i < layer_block_.size(); ++i) {
    const ScheduledBlock& layer = path_[i + 1].cell->scheduled;
    const Device home = device_of(placement.layer(i).device);
    for (size_t o = 0; o < layer.operations.size(); ++o) {
      if (layer.block->operations[o].kind == OpKind::attention && layer.operations[o].device != home) return false;
    }
  }
  return true;
}

int64_t ComputeBuffers::gpu_floor(size_t layer, const LayerPlacement& placement, bool op_offload) const {
  return block_floor(blocks_[layer_block_[layer]], {.layer = placement, .head = Where::cpu, .op_offload = op_offload, .ties_norms = false});
}

int64_t ComputeBuffers::gpu_floor_of_head(Where head, bool op_offload) const {
  return block_floor(blocks_.back(),
                     {.layer = LayerPlacement::uniform(Where::cpu), .head = head, .op_offload = op_offload, .ties_norms = false});
}

}  // namespace pshard
