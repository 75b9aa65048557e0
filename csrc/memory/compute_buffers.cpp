#include "memory/compute_buffers.hpp"

#include <algorithm>

#include "model/block_builder.hpp"

namespace pshard {

namespace {

constexpr int64_t kGpuAlignment = 128;
constexpr int64_t kHostAlignment = 32;

int64_t pad(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

size_t context_of(const BlockSurroundings& surroundings) {
  const auto bit = [](Device device) { return device == Device::gpu ? size_t{1} : size_t{0}; };
  return bit(surroundings.neighbours.before) | bit(surroundings.neighbours.after) << 1 | bit(surroundings.residual) << 2;
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
  for (const Block& block : blocks_) collect_inputs(block, input_bytes_);
  // A batch may hold embeddings instead of tokens; llama.cpp reserves for both.
  host_fixed_bytes_ = pad(model.hyperparameters().n_embd * kActivationBytes * pass.n_tokens, kHostAlignment);
  path_.resize(layers.size() + 2);
}

size_t ComputeBuffers::pattern_index(const BlockPlacement& placement) {
  for (size_t i = 0; i < tables_.size(); ++i) {
    if (tables_[i].placement == placement) return i;
  }
  PatternTable table{.placement = placement, .ends = {}, .cells = std::vector<Cell>(blocks_.size() * kContexts)};
  for (const Block& block : blocks_) table.ends.push_back(block_ends(block, placement, Device::host));
  tables_.push_back(std::move(table));
  return tables_.size() - 1;
}

const BlockBuffers& ComputeBuffers::buffers(PatternTable& table, size_t block, const BlockSurroundings& surroundings) {
  Cell& cell = table.cells[block * kContexts + context_of(surroundings)];
  if (!cell.known) {
    cell.buffers = block_buffers(blocks_[block], table.placement, surroundings, slot_bytes_[block]);
    cell.known = true;
    ++n_replays_;
  }
  return cell.buffers;
}

void ComputeBuffers::lay_path(const Placement& placement) {
  placement_tables_.clear();
  for (const LayerPlacement& pattern : placement.patterns) {
    placement_tables_.push_back(pattern_index({.layer = pattern, .outside = Where::cpu, .op_offload = placement.op_offload}));
  }
  const LayerPlacement none = LayerPlacement::uniform(Where::cpu);
  path_.front() = {.block = blocks_.size() - 2, .pattern = placement_tables_[placement.layer_pattern.front()]};
  path_.back() = {.block = blocks_.size() - 1,
                  .pattern = pattern_index({.layer = none, .outside = placement.head, .op_offload = placement.op_offload})};
  for (size_t i = 0; i < layer_block_.size(); ++i) {
    path_[i + 1] = {.block = layer_block_[i], .pattern = placement_tables_[placement.layer_pattern[i]]};
  }
  BlockSurroundings surroundings;
  uint32_t gpu_inputs = 0;
  for (size_t i = 0; i < path_.size(); ++i) {
    Step& step = path_[i];
    surroundings.neighbours.after = i + 1 < path_.size() ? tables_[path_[i + 1].pattern].ends[path_[i + 1].block].first : Device::host;
    step.buffers = &buffers(tables_[step.pattern], step.block, surroundings);
    step.gpu_inputs_so_far = gpu_inputs;
    gpu_inputs |= step.buffers->gpu_inputs;
    surroundings.neighbours.before = tables_[step.pattern].ends[step.block].last;
    surroundings.residual = step.buffers->residual;
  }
}

int64_t ComputeBuffers::input_bytes(uint32_t bits, int64_t alignment) const {
  int64_t total = 0;
  for (size_t i = 0; i < input_bytes_.size(); ++i) {
    if ((bits >> i & 1U) != 0) total += pad(input_bytes_[i], alignment);
  }
  return total;
}

ComputeBytes ComputeBuffers::operator()(const Placement& placement) {
  lay_path(placement);
  ComputeBytes result;
  uint32_t gpu_inputs = 0;   // that this block or a later one reads
  uint32_t host_inputs = 0;
  uint32_t counted_gpu = ~0U;
  uint32_t counted_host = ~0U;
  int64_t gpu_input_bytes = 0;
  int64_t host_input_bytes = 0;
  int64_t next_stream_bytes = 0;
  for (size_t i = path_.size(); i-- > 0;) {
    const Step& step = path_[i];
    const BlockBuffers& block = *step.buffers;
    gpu_inputs |= block.gpu_inputs;
    host_inputs |= block.host_inputs;
    // The GPU's copy of an input lives from its first reader to its last; the original until it was copied and the host has read it.
    const uint32_t live_gpu = gpu_inputs & (step.gpu_inputs_so_far | block.gpu_inputs);
    const uint32_t live_host = host_inputs | (gpu_inputs & ~step.gpu_inputs_so_far);
    if (live_gpu != counted_gpu) gpu_input_bytes = input_bytes(counted_gpu = live_gpu, kGpuAlignment);
    if (live_host != counted_host) host_input_bytes = input_bytes(counted_host = live_host, kHostAlignment);
    const int64_t gpu_bytes = std::max(block.gpu_bytes, block.gpu_last_split_bytes + next_stream_bytes);
    result.gpu_bytes = std::max(result.gpu_bytes, gpu_bytes + gpu_input_bytes);
    result.gpu_stream_bytes =
        std::max({result.gpu_stream_bytes, block.stream_bytes, block.last_stream_bytes + next_stream_bytes});
    result.host_bytes = std::max(result.host_bytes, block.host_bytes + host_input_bytes);
    next_stream_bytes = block.first_stream_bytes;
  }
  result.host_bytes += host_fixed_bytes_;
  return result;
}

}  // namespace pshard
