#include "plan/fit_shape.hpp"

#include <algorithm>

#include "model/layer_split.hpp"

namespace pshard {

namespace {

uint8_t pattern_index(Placement& placement, const LayerPlacement& pattern) {
  const auto known = std::find(placement.patterns.begin(), placement.patterns.end(), pattern);
  const auto index = static_cast<uint8_t>(known - placement.patterns.begin());
  if (known == placement.patterns.end()) placement.patterns.push_back(pattern);
  return index;
}

Cut make_cut(const Layer& layer, Overflow kept) {
  Cut cut;
  std::array<int64_t, kLayerGroupCount> largest{};
  for (const Tensor& tensor : layer.tensors) {
    const auto group = static_cast<size_t>(group_of(tensor.name));
    if (tensor.n_bytes < largest[group]) continue;
    largest[group] = tensor.n_bytes;
    cut.moves[group] = is_moved(local_name(tensor.name), kept);
  }
  for (size_t i = 0; i < layer.tensors.size(); ++i) {
    const std::string_view name = layer.tensors[i].name;
    if (is_moved(local_name(name), kept) != cut.moves[static_cast<size_t>(group_of(name))]) cut.exceptions.push_back(i);
  }
  return cut;
}

}  // namespace

bool is_moved(std::string_view local_name, Overflow kept) {
  const auto is = [&](auto... parts) { return (local_name.starts_with(parts) || ...); };
  switch (kept) {
    case Overflow::none:
      return is("ffn_up_exps", "ffn_down_exps", "ffn_gate_exps", "ffn_gate_up_exps", "ffn_up_chexps", "ffn_down_chexps", "ffn_gate_chexps",
                "ffn_gate_up_chexps");
    case Overflow::attn:
      return is("ffn_up", "ffn_gate", "ffn_down");
    case Overflow::up:
      return is("ffn_gate", "ffn_down");
    case Overflow::gate:
      return is("ffn_down");
  }
  return false;
}

FitShapes::FitShapes(const Model& model, const std::vector<int64_t>& free_bytes, bool offload_kqv, bool op_offload)
    : model_(model),
      free_(free_bytes.begin(), free_bytes.end()),
      offload_kqv_(offload_kqv),
      op_offload_(op_offload),
      n_layer_(static_cast<int32_t>(model.layers().size())),
      n_counted_(n_layer_ + model.hyperparameters().n_layer_nextn),
      cuts_(static_cast<size_t>(model.n_layer_classes())) {}

Placement FitShapes::initial() const {
  Placement placement = whole_layers(-1, free_);
  placement.pipeline = n_gpu() > 1 && offload_kqv_;
  return placement;
}

Placement FitShapes::without_experts() {
  Placement placement = whole_layers(-1, free_);
  for (size_t layer = 0; layer < model_.layers().size(); ++layer) cut(placement, layer, Overflow::none, Where::cpu);
  return placement;
}

Placement FitShapes::distributed(const std::vector<GpuLayers>& gpus) {
  uint32_t n_on_gpu = 0;
  std::vector<double> shares;
  for (const GpuLayers& gpu : gpus) {
    n_on_gpu += gpu.n_layer;
    shares.push_back(gpu.n_layer);
  }
  Placement placement = whole_layers(static_cast<int32_t>(n_on_gpu), n_on_gpu == 0 ? free_ : shares);
  bool has_overrides = false;
  uint32_t layer = static_cast<uint32_t>(n_layer_) + 1 - n_on_gpu;  // prediction layers are forgotten here
  for (size_t gpu = 0; gpu < gpus.size(); ++gpu) {
    layer += gpus[gpu].n_whole();
    const uint32_t first = layer;
    const uint32_t end = first + gpus[gpu].n_partial;
    const Where next = gpu + 1 < gpus.size() ? pinned_on(static_cast<int>(gpu) + 1) : Where::cpu;
    for (; layer < end; ++layer) {
      const Overflow kept = layer == first ? gpus[gpu].overflow : Overflow::none;
      cut(placement, layer, kept, kept == Overflow::none ? Where::cpu : next);
      has_overrides = true;
    }
    layer = end;
  }
  placement.pipeline = n_gpu() > 1 && n_on_gpu > static_cast<uint32_t>(n_counted_) && offload_kqv_ && !has_overrides;
  return placement;
}

Placement FitShapes::whole_layers(int32_t n_gpu_layers, const std::vector<double>& shares) const {
  const std::vector<Where> places = layer_places(n_counted_, n_gpu_layers, shares);
  Placement placement;
  placement.n_gpu = n_gpu();
  placement.op_offload = op_offload_ && n_gpu() > 0;
  placement.head = places.back();
  for (int32_t layer = 0; layer < n_layer_; ++layer) {
    LayerPlacement pattern = LayerPlacement::uniform(places[static_cast<size_t>(layer)]);
    if (!offload_kqv_) pattern[Group::cache] = Where::cpu;
    placement.layer_pattern.push_back(pattern_index(placement, pattern));
  }
  return placement;
}

void FitShapes::cut(Placement& placement, size_t layer, Overflow kept, Where to) {
  if (layer >= model_.layers().size()) return;  // the output, which has no such tensors
  const std::vector<Tensor>& tensors = model_.layers()[layer].tensors;
  const Cut& cut = cut_of(model_.layers()[layer], kept);
  LayerPlacement pattern = placement.layer(layer);
  for (const size_t i : cut.exceptions) {
    const auto group = group_of(tensors[i].name);
    if (pattern[group] != to)
      placement.exceptions.push_back({tensors[i].name, cut.moves[static_cast<size_t>(group)] ? pattern[group] : to});
  }
  for (size_t group = 0; group < pattern.group.size(); ++group) {
    if (cut.moves[group]) pattern.group[group] = to;
  }
  placement.layer_pattern[layer] = pattern_index(placement, pattern);
}

const Cut& FitShapes::cut_of(const Layer& layer, Overflow kept) {
  std::optional<Cut>& cut = cuts_[static_cast<size_t>(layer.layer_class)][static_cast<size_t>(kept)];
  if (!cut) cut = make_cut(layer, kept);
  return *cut;
}

}  // namespace pshard
