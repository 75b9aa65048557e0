#include "memory/memory.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>

#include "memory/meter.hpp"

namespace pshard {

namespace {

constexpr int64_t kGpuAlignment = 128;
constexpr int64_t kHostAlignment = 32;
constexpr int64_t kGpuRowPadding = 512;  // elements
constexpr DataType kFloat{0, 1, 4};
constexpr std::string_view kEmbedding = "token_embd.weight";

int64_t pad(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// CUDA's matrix kernels read whole groups of quantised blocks, also behind the last row.
int64_t row_padding(const DataType& type, int64_t row) {
  const int64_t tail = row % kGpuRowPadding;
  return type.block_elements > 1 && tail != 0 ? type.row_bytes(kGpuRowPadding - tail) : 0;
}

int64_t padded_rows(const DataType& type, int64_t row, int64_t n, bool on_gpu) {
  if (row == 0) return 0;
  const int64_t bytes = type.row_bytes(row) * n;
  return on_gpu ? pad(bytes + row_padding(type, row), kGpuAlignment) : pad(bytes, kHostAlignment);
}

void require_positive(int64_t value, const char* name) {
  if (value > 0) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be at least 1");
}

// Whose layers keep a state or a cache. In other models all have a cache, also those that do not attend.
bool is_hybrid(const Model& model) {
  return std::any_of(model.layers().begin(), model.layers().end(), [](const Layer& layer) { return state_bytes(layer.parameters) > 0; });
}

template <typename Bytes>
int64_t sum(const std::vector<Tensor>& tensors, Bytes bytes) {
  int64_t total = 0;
  for (const Tensor& tensor : tensors) total += bytes(tensor);
  return total;
}

// Where a tensor lies whose group is at `where`.
Where home_of(const Tensor& tensor, Where where) { return tensor.host_only ? Where::cpu : where; }

int64_t tensor_bytes(const Tensor& tensor, Where where) { return is_pinned(where) ? gpu_tensor_bytes(tensor) : host_tensor_bytes(tensor); }

// Moves one tensor of a layer away from its group.
void move_exception(const Model& model, const Placement& placement, const TensorException& exception, MemoryReport& report) {
  const auto layer = static_cast<size_t>(layer_of(exception.name));
  if (layer >= model.layers().size()) return;  // for_each_outside has those
  for (const Tensor& tensor : model.layers()[layer].tensors) {
    if (tensor.name != exception.name) continue;
    if (tensor.host_only) continue;
    const Where group = placement.layer(layer)[group_of(tensor.name)];
    report.home(group).weights_bytes -= tensor_bytes(tensor, group);
    report.home(exception.where).weights_bytes += tensor_bytes(tensor, exception.where);
  }
}

Where place_of(const Tensor& tensor, const Placement& placement, Where otherwise) {
  for (const TensorException& exception : placement.exceptions) {
    if (exception.name == tensor.name) return exception.where;
  }
  return otherwise;
}

// Calls `add(tensor, where)` for every copy that a device keeps of what lies outside the layers.
template <typename Add>
void for_each_outside(const Model& model, const Placement& placement, Add add) {
  constexpr Where kEverywhere = Where::stream_a;  // with the layers
  uint32_t with_layers = 0;                       // those whose rope they scale, one bit per home
  const GraphTraits& traits = model.hyperparameters().traits;
  for (size_t i = 0; i < placement.layer_pattern.size(); ++i) {
    if (traits.full_layers_scale_rope && model.layers()[i].parameters.window > 0) continue;
    const Where where = placement.layer(i).device;
    with_layers |= 1U << (is_pinned(where) ? gpu_of(where) : kMaxGpus);
  }
  const Where first = placement.layer(0).device;
  Where embedding = Where::cpu;
  for (const Tensor& tensor : model.embedding()) {
    const bool is_rope = tensor.name.starts_with("rope_f");
    const bool is_norm = tensor.name.starts_with("token_embd_norm") && is_pinned(first);
    const Where where = place_of(tensor, placement, is_rope ? kEverywhere : is_norm ? first : Where::cpu);
    if (tensor.name == kEmbedding) embedding = where;
    if (where != kEverywhere) {
      add(tensor, where);
      continue;
    }
    for (int gpu = 0; gpu < placement.n_gpu; ++gpu) {
      if ((with_layers >> gpu & 1U) != 0) add(tensor, pinned_on(gpu));
    }
    if ((with_layers >> kMaxGpus & 1U) != 0) add(tensor, Where::cpu);
  }
  for (const Tensor& tensor : model.head()) {
    const Where where = home_of(tensor, place_of(tensor, placement, placement.head));
    const auto home = [](Where place) { return is_pinned(place) ? place : Where::cpu; };
    const bool shared = model.tied_head() && !traits.repeats_tied_head && tensor.name == kEmbedding && home(where) == home(embedding);
    if (!shared) add(tensor, where);
  }
}

}  // namespace

void check(const ContextParameters& context) {
  require_positive(context.n_ctx, "n_ctx");
  require_positive(context.n_batch, "n_batch");
  require_positive(context.n_ubatch, "n_ubatch");
  require_positive(context.n_seq_max, "n_seq_max");
  require_positive(context.cell_padding, "cell_padding");
}

CacheCells cache_cells(const Model& model, const ContextParameters& context) {
  check(context);
  CacheCells cells;
  const int64_t n_ctx = pad(context.n_ctx, context.cell_padding);
  cells.n_streams = context.kv_unified ? 1 : context.n_seq_max;
  cells.full = pad(n_ctx / cells.n_streams, context.cell_padding);
  if (cells.full == 0) cells.full = context.cell_padding;
  cells.window = cells.full;
  int64_t window = 0;
  for (const Layer& layer : model.layers()) window = std::max(window, layer.parameters.window);
  if (window > 0 && !context.swa_full) {
    const int64_t n_ubatch = std::min({context.n_ubatch, context.n_batch, cells.full * cells.n_streams});
    const bool shares = context.kv_unified && !model.hyperparameters().traits.caches_by_sequence;
    const int64_t sharing = shares ? context.n_seq_max : 1;
    cells.window = pad(std::min(cells.full, window * sharing + n_ubatch), context.cell_padding);
  }
  if (model.hyperparameters().traits.caches_by_sequence) cells.n_streams = context.n_seq_max;
  return cells;
}

std::vector<int64_t> cache_tensor_bytes(const Model& model, const Layer& layer, const ContextParameters& context, Where where) {
  const LayerParameters& p = layer.parameters;
  const bool on_gpu = is_pinned(where);
  std::vector<int64_t> bytes;
  const auto add = [&](const DataType& type, int64_t row, int64_t n) {
    if (row > 0) bytes.push_back(padded_rows(type, row, n, on_gpu));
  };
  const bool attends = p.n_head_kv > 0 && p.head_dim_k > 0;
  if (p.shared_cache >= 0) return bytes;
  if (model.hyperparameters().traits.keeps_cache && (attends || !is_hybrid(model))) {
    const CacheCells cells = cache_cells(model, context);
    const int64_t n = (p.window > 0 ? cells.window : cells.full) * cells.n_streams;
    int64_t v_row = p.n_head_kv * p.head_dim_v;
    const bool never_fused = !model.hyperparameters().traits.fuses_attention;
    if ((never_fused || (!context.flash_attn && !context.flash_attn_auto)) && (v_row > 0 || !attends)) {  // V is transposed
      for (const LayerParameters& other : model.hyperparameters().layers) v_row = std::max(v_row, other.n_head_kv * other.head_dim_v);
    }
    add(context.type_k, p.n_head_kv * p.head_dim_k, n);
    add(context.type_v, v_row, n);
    if (p.compression == 0) {
      add(context.type_k, p.indexer_dim, n);
      add(context.type_v, p.indexer_dim_v, n);
    } else {
      const int64_t compressed = (cells.full + p.compression - 1) / p.compression;
      const int64_t n_compressed = pad(compressed, context.cell_padding) * cells.n_streams;
      add(context.type_k, p.n_head_kv * p.head_dim_k, n_compressed);
      add(context.type_k, p.indexer_dim, n_compressed);
    }
  }
  add(kFloat, p.conv_state, context.n_seq_max);
  add(kFloat, p.scan_state, context.n_seq_max);
  return bytes;
}

int64_t cache_bytes(const Model& model, const Layer& layer, const ContextParameters& context, Where where) {
  int64_t total = 0;
  for (const int64_t n_bytes : cache_tensor_bytes(model, layer, context, where)) total += n_bytes;
  return total;
}

ContextParameters resolve_flash_attention(const Model& model, const Placement& placement, const ContextParameters& context) {
  return Meter(model, context, context.n_seq_max, placement.n_gpu).resolved(placement);
}

Pass reserved_pass(const Model& model, const ContextParameters& context, int64_t n_tokens) {
  require_positive(n_tokens, "n_tokens");
  const CacheCells cells = cache_cells(model, context);
  Pass pass;
  pass.n_seqs = context.n_seq_max;
  const std::vector<Tensor>& tensors = model.layers().front().tensors;
  const bool encodes = std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return is_of_encoder(t.name); });
  const bool limits_outputs = context.n_outputs_max > 0 && !encodes;  // a model with an encoder hands out all
  pass.n_outputs = limits_outputs ? std::min(n_tokens, context.n_outputs_max) : n_tokens;
  pass.n_tokens = pad(n_tokens, pass.n_seqs);  // equal parts for all sequences
  pass.n_streams = cells.n_streams;
  pass.n_kv = cells.full;
  pass.n_kv_window = cells.window;
  pass.flash_attn = context.flash_attn;
  pass.plain_v = context.flash_attn_auto;
  pass.pshard_runtime = context.pshard_runtime;
  pass.type_k = context.type_k;
  pass.type_v = context.type_v;
  return pass;
}

int64_t gpu_tensor_bytes(const Tensor& tensor) { return pad(tensor.n_bytes + row_padding(tensor.type, tensor.shape[0]), kGpuAlignment); }

int64_t host_tensor_bytes(const Tensor& tensor) { return pad(tensor.n_bytes, kHostAlignment); }

int64_t gpu_weight_bytes(const Layer& layer, const LayerPlacement& placement) {
  return sum(layer.tensors, [&](const Tensor& t) { return is_pinned(home_of(t, placement[group_of(t.name)])) ? gpu_tensor_bytes(t) : 0; });
}

int64_t host_weight_bytes(const Layer& layer, const LayerPlacement& placement) {
  return sum(layer.tensors, [&](const Tensor& t) { return is_pinned(home_of(t, placement[group_of(t.name)])) ? 0 : host_tensor_bytes(t); });
}

int64_t gpu_head_bytes(const Model& model) { return sum(model.head(), gpu_tensor_bytes); }

int64_t host_head_bytes(const Model& model) {
  return sum(model.head(), [&](const Tensor& t) { return model.tied_head() && t.name == kEmbedding ? 0 : host_tensor_bytes(t); });
}

int64_t embedding_bytes(const Model& model) { return sum(model.embedding(), host_tensor_bytes); }

WeightBytes outside_weight_bytes(const Model& model, const Placement& placement) {
  WeightBytes bytes;
  for_each_outside(model, placement, [&](const Tensor& tensor, Where where) {
    (is_pinned(where) ? bytes.gpu_bytes : bytes.host_bytes) += tensor_bytes(tensor, where);
  });
  return bytes;
}

MemoryReport resident_memory(const Model& model, const Placement& placement, const ContextParameters& context) {
  const std::vector<Layer>& layers = model.layers();
  MemoryReport report;
  report.gpus.resize(static_cast<size_t>(placement.n_gpu));
  const auto add_weight = [&](const Tensor& tensor, Where where) { report.home(where).weights_bytes += tensor_bytes(tensor, where); };
  for_each_outside(model, placement, add_weight);
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerPlacement& where = placement.layer(i);
    for (const Tensor& tensor : layers[i].tensors) add_weight(tensor, home_of(tensor, where[group_of(tensor.name)]));
    report.home(where[Group::cache]).cache_bytes += cache_bytes(model, layers[i], context, where[Group::cache]);
  }
  for (const TensorException& exception : placement.exceptions) move_exception(model, placement, exception, report);
  return report;
}

MemoryReport memory(const Model& model, const Placement& placement, const ContextParameters& context, int64_t n_tokens, MemoryStage stage) {
  return Meter(model, context, n_tokens, placement.n_gpu)(placement, stage);
}

}  // namespace pshard
