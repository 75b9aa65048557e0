#include "model/model.hpp"

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace pshard {
namespace {

constexpr std::string_view kEmbedding = "token_embd.weight";

bool same_local_tensor(const Tensor& a, const Tensor& b) {
  return a.type == b.type && a.shape == b.shape && local_name(a.name) == local_name(b.name);
}

// Tensors are sorted by local name, so equal layers compare equal whatever their order in the file.
bool same_class(const Layer& a, const Layer& b) {
  return a.parameters == b.parameters &&
         std::equal(a.tensors.begin(), a.tensors.end(), b.tensors.begin(), b.tensors.end(), same_local_tensor);
}

bool has_tensor(const std::vector<Tensor>& tensors, std::string_view name) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return tensor.name == name; });
}

// CUDA's kernels convolve 128 channels at a time, and scan these sizes of a state.
bool lacks_gpu_kernel(const Hyperparameters& h, Mixer mixer, const Tensor& tensor) {
  const std::string_view name = local_name(tensor.name);
  if (name == "ssm_conv1d.weight") return tensor.shape[1] % kConvolvedAtOnce != 0;
  if (name != "ssm_a") return false;
  if (mixer == Mixer::mamba_heads) return true;
  if (mixer == Mixer::mamba) return tensor.shape[0] != 16 || tensor.shape[1] % 128 != 0;
  const bool knows_state = h.ssm_state_size == 96 || h.ssm_state_size == 128 || h.ssm_state_size == 256;
  return mixer == Mixer::mamba2 && (!knows_state || h.ssm_inner_size / tensor.shape[1] % 16 != 0);
}

// Files have them, but llama.cpp does not load them.
bool is_unread(const Tensor& tensor) { return local_name(tensor.name).starts_with("cross_attn_rel_b"); }

void move_by_prefix(std::vector<Tensor>& from, std::vector<Tensor>& to, std::string_view prefix) {
  const auto split = std::stable_partition(from.begin(), from.end(), [&](const Tensor& t) { return !t.name.starts_with(prefix); });
  std::move(split, from.end(), std::back_inserter(to));
  from.erase(split, from.end());
}

}  // namespace

int64_t kv_bytes_per_cell(const LayerParameters& layer, const DataType& type_k, const DataType& type_v) {
  if (layer.shared_cache >= 0) return 0;
  return type_k.row_bytes(layer.n_head_kv * layer.head_dim_k) + type_k.row_bytes(layer.indexer_dim) +
         type_v.row_bytes(layer.n_head_kv * layer.head_dim_v + layer.indexer_dim_v);
}

int64_t state_bytes(const LayerParameters& layer) {
  constexpr int64_t kFloatBytes = 4;
  return (layer.conv_state + layer.scan_state) * kFloatBytes;
}

Model::Model(Hyperparameters hyperparameters, std::vector<Tensor> tensors) : hyperparameters_(std::move(hyperparameters)) {
  const auto& h = hyperparameters_;
  if (h.n_layer <= 0 || h.n_layer_nextn < 0) {
    throw std::invalid_argument("a model needs at least one computed layer; it has " + std::to_string(h.n_layer) + " and " +
                                std::to_string(h.n_layer_nextn) + " next-token-prediction layers");
  }
  const int64_t n_stored = int64_t{h.n_layer} + h.n_layer_nextn;
  if (static_cast<int64_t>(h.layers.size()) != n_stored) {
    throw std::invalid_argument(std::to_string(h.layers.size()) + " layer parameters for " + std::to_string(n_stored) + " layers");
  }

  layers_.resize(static_cast<size_t>(h.n_layer));
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i].parameters = h.layers[i];
  for (Tensor& tensor : tensors) {
    is_adapted_ = is_adapted_ || tensor.name.find(kAdapterDown) != std::string::npos;
    const int32_t layer = layer_of(tensor.name);
    if (layer >= n_stored) {
      throw std::invalid_argument("tensor '" + tensor.name + "' lies outside the " + std::to_string(n_stored) + " layers of the model");
    }
    if (is_unread(tensor)) continue;
    if (layer >= h.n_layer) continue;  // next-token prediction: stored, never loaded for a forward pass
    if (layer >= 0) {
      tensor.host_only = lacks_gpu_kernel(h, h.layers[static_cast<size_t>(layer)].mixer, tensor);
      layers_[static_cast<size_t>(layer)].tensors.push_back(std::move(tensor));
    } else if (group_of(tensor.name) == Group::head) {
      head_.push_back(std::move(tensor));
    } else {
      embedding_.push_back(std::move(tensor));
    }
  }

  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    if (layer.tensors.empty()) throw std::invalid_argument("layer " + std::to_string(i) + " has no tensors");
    std::sort(layer.tensors.begin(), layer.tensors.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
    const auto twin = std::find_if(layers_.begin(), layers_.begin() + static_cast<std::ptrdiff_t>(i),
                                   [&](const Layer& other) { return same_class(layer, other); });
    layer.layer_class = twin == layers_.begin() + static_cast<std::ptrdiff_t>(i) ? n_layer_classes_++ : twin->layer_class;
  }

  if (!h.traits.loads_head) return;
  // LFM2 names its final norm token_embd_norm.
  if (!has_tensor(head_, "output_norm.weight")) move_by_prefix(embedding_, head_, "token_embd_norm.");
  if (has_tensor(head_, "output.weight")) return;
  const auto embedding = std::find_if(embedding_.begin(), embedding_.end(), [](const Tensor& tensor) { return tensor.name == kEmbedding; });
  if (embedding == embedding_.end()) {
    throw std::invalid_argument("the model has neither output.weight nor token_embd.weight to compute logits with");
  }
  head_.push_back(*embedding);
  head_.back().host_only = h.traits.reads_embedding;
  tied_head_ = true;
}

}  // namespace pshard
