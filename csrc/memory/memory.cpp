#include "memory/memory.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "memory/compute_buffers.hpp"

namespace pshard {

namespace {

constexpr int64_t kCellPadding = 256;
constexpr int64_t kGpuAlignment = 128;
constexpr int64_t kHostAlignment = 32;
constexpr int64_t kGpuRowPadding = 512;  // elements

int64_t pad(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// CUDA's matrix kernels read whole groups of quantised blocks, also behind the last row.
int64_t row_padding(const DataType& type, int64_t row) {
  const int64_t tail = row % kGpuRowPadding;
  return type.block_elements > 1 && tail != 0 ? type.row_bytes(kGpuRowPadding - tail) : 0;
}

int64_t padded_rows(const DataType& type, int64_t row, int64_t n) {
  return row == 0 ? 0 : pad(type.row_bytes(row) * n + row_padding(type, row), kGpuAlignment);
}

void require_positive(int64_t value, const char* name) {
  if (value > 0) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be at least 1");
}

template <typename Bytes>
int64_t sum(const std::vector<Tensor>& tensors, Bytes bytes) {
  int64_t total = 0;
  for (const Tensor& tensor : tensors) total += bytes(tensor);
  return total;
}

// Moves one tensor of a layer away from its group.
void move_exception(const Model& model, const Placement& placement, const TensorException& exception, MemoryReport& report) {
  const auto layer = static_cast<size_t>(layer_of(exception.name));
  if (layer >= model.layers().size()) return;  // outside the layers there are no groups to split
  for (const Tensor& tensor : model.layers()[layer].tensors) {
    if (tensor.name != exception.name) continue;
    const bool was_pinned = placement.layer(layer)[group_of(tensor.name)] == Where::pinned;
    const bool is_pinned = exception.where == Where::pinned;
    const int64_t moved = static_cast<int64_t>(is_pinned) - static_cast<int64_t>(was_pinned);
    report.gpu.weights_bytes += moved * gpu_tensor_bytes(tensor);
    report.host.weights_bytes -= moved * host_tensor_bytes(tensor);
  }
}

}  // namespace

void check(const ContextParameters& context) {
  require_positive(context.n_ctx, "n_ctx");
  require_positive(context.n_batch, "n_batch");
  require_positive(context.n_ubatch, "n_ubatch");
  require_positive(context.n_seq_max, "n_seq_max");
}

CacheCells cache_cells(const Model& model, const ContextParameters& context) {
  check(context);
  CacheCells cells;
  const int64_t n_ctx = pad(context.n_ctx, kCellPadding);
  cells.n_streams = context.kv_unified ? 1 : context.n_seq_max;
  cells.full = pad(n_ctx / cells.n_streams, kCellPadding);
  if (cells.full == 0) cells.full = kCellPadding;
  cells.window = cells.full;
  int64_t window = 0;
  for (const Layer& layer : model.layers()) window = std::max(window, layer.parameters.window);
  if (window > 0 && !context.swa_full) {
    const int64_t n_ubatch = std::min({context.n_ubatch, context.n_batch, cells.full * cells.n_streams});
    const int64_t sharing = context.kv_unified ? context.n_seq_max : 1;
    cells.window = pad(std::min(cells.full, window * sharing + n_ubatch), kCellPadding);
  }
  return cells;
}

int64_t cache_bytes(const Model& model, const Layer& layer, const ContextParameters& context) {
  const LayerParameters& p = layer.parameters;
  int64_t bytes = pad(p.conv_state * context.n_seq_max * 4, kGpuAlignment) + pad(p.scan_state * context.n_seq_max * 4, kGpuAlignment);
  if (!model.hyperparameters().traits.causal || p.n_head_kv == 0 || p.head_dim_k == 0) return bytes;
  const CacheCells cells = cache_cells(model, context);
  const int64_t n = (p.window > 0 ? cells.window : cells.full) * cells.n_streams;
  int64_t v_row = p.n_head_kv * p.head_dim_v;
  if (!context.flash_attn && v_row > 0) {
    for (const LayerParameters& other : model.hyperparameters().layers) v_row = std::max(v_row, other.n_head_kv * other.head_dim_v);
  }
  return bytes + padded_rows(context.type_k, p.n_head_kv * p.head_dim_k, n) + padded_rows(context.type_v, v_row, n);
}

Pass reserved_pass(const Model& model, const ContextParameters& context, int64_t n_tokens) {
  require_positive(n_tokens, "n_tokens");
  const CacheCells cells = cache_cells(model, context);
  Pass pass;
  pass.n_seqs = context.n_seq_max;
  pass.n_outputs = n_tokens;
  pass.n_tokens = pad(n_tokens, pass.n_seqs);  // equal parts for all sequences
  pass.n_streams = cells.n_streams;
  pass.n_kv = cells.full;
  pass.n_kv_window = cells.window;
  pass.flash_attn = context.flash_attn;
  pass.type_k = context.type_k;
  pass.type_v = context.type_v;
  return pass;
}

int64_t gpu_tensor_bytes(const Tensor& tensor) { return pad(tensor.n_bytes + row_padding(tensor.type, tensor.shape[0]), kGpuAlignment); }

int64_t host_tensor_bytes(const Tensor& tensor) { return pad(tensor.n_bytes, kHostAlignment); }

int64_t gpu_weight_bytes(const Layer& layer, const LayerPlacement& placement) {
  return sum(layer.tensors, [&](const Tensor& t) { return placement[group_of(t.name)] == Where::pinned ? gpu_tensor_bytes(t) : 0; });
}

int64_t host_weight_bytes(const Layer& layer, const LayerPlacement& placement) {
  return sum(layer.tensors, [&](const Tensor& t) { return placement[group_of(t.name)] == Where::pinned ? 0 : host_tensor_bytes(t); });
}

int64_t gpu_head_bytes(const Model& model) { return sum(model.head(), gpu_tensor_bytes); }

int64_t host_head_bytes(const Model& model) {
  return sum(model.head(), [&](const Tensor& t) { return model.tied_head() && t.name == "token_embd.weight" ? 0 : host_tensor_bytes(t); });
}

int64_t embedding_bytes(const Model& model) { return sum(model.embedding(), host_tensor_bytes); }

WeightBytes outside_weight_bytes(const Model& model, const Placement& placement) {
  WeightBytes bytes;
  bool any_pinned = false;
  bool any_other = false;
  for (size_t i = 0; i < placement.layer_pattern.size(); ++i) {
    (placement.layer(i)[Group::norms] == Where::pinned ? any_pinned : any_other) = true;
  }
  for (const Tensor& tensor : model.embedding()) {
    if (tensor.name.starts_with("rope_f")) {
      bytes.gpu_bytes += any_pinned ? gpu_tensor_bytes(tensor) : 0;
      bytes.host_bytes += any_other ? host_tensor_bytes(tensor) : 0;
    } else if (tensor.name.starts_with("token_embd_norm") && placement.layer(0)[Group::norms] == Where::pinned) {
      bytes.gpu_bytes += gpu_tensor_bytes(tensor);
    } else {
      bytes.host_bytes += host_tensor_bytes(tensor);
    }
  }
  if (placement.head == Where::pinned) {
    bytes.gpu_bytes += gpu_head_bytes(model);
  } else {
    bytes.host_bytes += host_head_bytes(model);
  }
  return bytes;
}

MemoryReport memory(const Model& model, const Placement& placement, const ContextParameters& context, int64_t n_tokens) {
  const std::vector<Layer>& layers = model.layers();
  check(placement, layers.size());
  MemoryReport report;
  const WeightBytes outside = outside_weight_bytes(model, placement);
  report.gpu.weights_bytes = outside.gpu_bytes;
  report.host.weights_bytes = outside.host_bytes;
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerPlacement& where = placement.layer(i);
    report.gpu.weights_bytes += gpu_weight_bytes(layers[i], where);
    report.host.weights_bytes += host_weight_bytes(layers[i], where);
    DeviceBytes& home = where[Group::cache] == Where::pinned ? report.gpu : report.host;
    home.cache_bytes += cache_bytes(model, layers[i], context);
  }
  for (const TensorException& exception : placement.exceptions) move_exception(model, placement, exception, report);
  const ComputeBytes compute = ComputeBuffers(model, context, n_tokens)(placement);
  report.gpu.compute_bytes = compute.gpu_bytes;
  report.gpu.stream_bytes = compute.gpu_stream_bytes;
  report.host.compute_bytes = compute.host_bytes;
  return report;
}

}  // namespace pshard
