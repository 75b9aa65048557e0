#include "model/tensor.hpp"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <system_error>

namespace pshard {
namespace {

// Models with an encoder name the layers of their two halves apart.
constexpr std::string_view kLayerPrefixes[] = {"blk.", "enc.blk.", "dec.blk."};

// End of "blk.N." in `name`, or 0 where there is no such prefix; `layer` receives N.
size_t layer_prefix(std::string_view name, int32_t& layer) {
  const auto* const prefix =
      std::find_if(std::begin(kLayerPrefixes), std::end(kLayerPrefixes), [&](std::string_view p) { return name.starts_with(p); });
  if (prefix == std::end(kLayerPrefixes)) return 0;
  const char* first = name.data() + prefix->size();
  const char* last = name.data() + name.size();
  const auto [end, error] = std::from_chars(first, last, layer);
  if (error != std::errc{} || layer < 0 || end == last || *end != '.') return 0;
  return static_cast<size_t>(end - name.data()) + 1;
}

// llama.cpp keeps with the first layer what makes the parts of the token embeddings that the layers read.
bool is_with_first_layer(std::string_view name) {
  return name.starts_with("per_layer_model_proj.") || name.starts_with("per_layer_proj_norm.");
}

// What precedes the first dot: "attn_q" of "attn_q.weight", "shortconv" of "shortconv.conv.weight", "ssm_a" of "ssm_a".
std::string_view stem(std::string_view local) { return local.substr(0, local.find('.')); }

enum class FfnKind : uint8_t { dense, routed, shared };

FfnKind ffn_kind(std::string_view local) {
  const std::string_view name = stem(local);
  if (name.ends_with("_shexp")) return FfnKind::shared;
  if (name.ends_with("exps")) return FfnKind::routed;  // _exps, and _chexps: chunks shared by groups of routed experts
  // Old files keep one tensor per expert: ffn_up.7.weight.
  const bool numbered = local.size() > name.size() + 1 && local[name.size() + 1] >= '0' && local[name.size() + 1] <= '9';
  return numbered ? FfnKind::routed : FfnKind::dense;
}

Group pick(FfnKind kind, Group dense, Group routed, Group shared) {
  switch (kind) {
    case FfnKind::routed:
      return routed;
    case FfnKind::shared:
      return shared;
    case FfnKind::dense:
      break;
  }
  return dense;
}

struct Rule {
  std::string_view prefix;
  Group group;
};

// The first prefix that fits wins, so the exceptions come before the family. Anything else in a layer is a norm or small enough to
// travel with the norms.
constexpr Rule kLayerRules[] = {
    {"attn_norm", Group::norms},
    {"attn_output_norm", Group::norms},
    {"attn_post_norm", Group::norms},
    {"cross_attn_norm", Group::norms},
    {"cross_attn_", Group::attention},
    {"attn_", Group::attention},
    {"indexer", Group::attention},
    {"ssm_", Group::mixer},
    {"shortconv", Group::mixer},
    {"time_mix", Group::mixer},
    {"ffn_gate_inp", Group::router},
    {"ffn_gate_tid2eid", Group::router},
    {"exp_probs_b", Group::router},
    {"vis_attn", Group::attention},  // what is read in their stead for images (CogVLM)
    {"vis_up", Group::ffn_up},
    {"vis_gate", Group::ffn_gate},
    {"vis_down", Group::ffn_down},
    {"channel_mix_key", Group::ffn_up},
    {"channel_mix_value", Group::ffn_down},
    {"channel_mix_receptance", Group::ffn_gate},
};

// Tensors after the last layer: final norm, projection, classifier and sentence-embedding layers.
constexpr std::string_view kHeadPrefixes[] = {"output",  "enc.output_norm", "dec.output_norm",   "cls",
                                              "dense_2", "dense_3",         "altup_unembd_proj", "altup_proj"};

Group layer_group(std::string_view local) {
  for (const Rule& rule : kLayerRules) {
    if (local.starts_with(rule.prefix)) return rule.group;
  }
  const FfnKind kind = ffn_kind(local);
  const std::string_view name = stem(local);
  const auto is = [&](std::string_view part) { return name.starts_with(part) && (name.size() == part.size() || name[part.size()] == '_'); };
  if (is("ffn_up") || is("ffn_gate_up")) return pick(kind, Group::ffn_up, Group::experts_up, Group::shared_up);
  if (is("ffn_gate")) return pick(kind, Group::ffn_gate, Group::experts_gate, Group::shared_gate);
  if (is("ffn_down")) return pick(kind, Group::ffn_down, Group::experts_down, Group::shared_down);
  return Group::norms;
}

}  // namespace

std::string_view to_string(Group group) {
  static constexpr std::array<std::string_view, kGroupCount> kNames = {
      "norms",      "attention",    "cache",        "mixer",     "ffn_up",      "ffn_gate",    "ffn_down",  "router",
      "experts_up", "experts_gate", "experts_down", "shared_up", "shared_gate", "shared_down", "embedding", "head"};
  return kNames[static_cast<size_t>(group)];
}

int32_t layer_of(std::string_view tensor_name) {
  int32_t layer = -1;
  if (layer_prefix(tensor_name, layer) != 0) return layer;
  return is_with_first_layer(tensor_name) ? 0 : -1;
}

std::string_view local_name(std::string_view tensor_name) {
  int32_t layer = -1;
  return tensor_name.substr(layer_prefix(tensor_name, layer));
}

Group group_of(std::string_view tensor_name) {
  int32_t layer = -1;
  const size_t prefix = layer_prefix(tensor_name, layer);
  if (prefix != 0 || is_with_first_layer(tensor_name)) return layer_group(tensor_name.substr(prefix));
  for (const std::string_view head : kHeadPrefixes) {
    if (tensor_name.starts_with(head)) return Group::head;
  }
  return Group::embedding;
}

}  // namespace pshard
