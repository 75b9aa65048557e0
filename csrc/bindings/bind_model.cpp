#include <pybind11/native_enum.h>

#include <span>

#include "bindings/bindings.hpp"
#include "model/encoder.hpp"
#include "model/gguf_skip.hpp"
#include "model/model.hpp"

namespace {

using namespace py::literals;
using pshard::DataType;
using pshard::Encoder;
using pshard::Gating;
using pshard::GraphTraits;
using pshard::Group;
using pshard::Hyperparameters;
using pshard::LateRows;
using pshard::Layer;
using pshard::LayerParameters;
using pshard::Mixer;
using pshard::Model;
using pshard::Sum;
using pshard::Temperature;
using pshard::Tensor;

void bind_enums(py::module_& m) {
  py::native_enum<Group> group(m, "Group", "enum.IntEnum");
  for (int i = 0; i < pshard::kGroupCount; ++i) {
    const auto value = static_cast<Group>(i);
    group.value(std::string(pshard::to_string(value)).c_str(), value);
  }
  group.finalize();
  py::native_enum<Mixer>(m, "Mixer", "enum.IntEnum")
      .value("attention", Mixer::attention)
      .value("mamba", Mixer::mamba)
      .value("mamba2", Mixer::mamba2)
      .value("mamba_heads", Mixer::mamba_heads)
      .value("gated_delta", Mixer::gated_delta)
      .value("channel_delta", Mixer::channel_delta)
      .value("short_convolution", Mixer::short_convolution)
      .value("token_shift", Mixer::token_shift)
      .value("lightning", Mixer::lightning)
      .value("none", Mixer::none)
      .finalize();
  py::native_enum<LateRows>(m, "LateRows", "enum.IntEnum")
      .value("no", LateRows::no)
      .value("behind_layers", LateRows::behind_layers)
      .value("before_norm", LateRows::before_norm)
      .value("behind_norm", LateRows::behind_norm)
      .value("never", LateRows::never)
      .finalize();
  py::native_enum<Sum>(m, "Sum", "enum.IntEnum")
      .value("sequential", Sum::sequential)
      .value("ffn_residual_attention", Sum::ffn_residual_attention)
      .value("ffn_attention_residual", Sum::ffn_attention_residual)
      .value("attention_ffn_residual", Sum::attention_ffn_residual)
      .finalize();
  py::native_enum<Temperature>(m, "Temperature", "enum.IntEnum")
      .value("none", Temperature::none)
      .value("unrotated", Temperature::unrotated)
      .value("all", Temperature::all)
      .finalize();
  py::native_enum<Gating>(m, "Gating", "enum.IntEnum")
      .value("softmax", Gating::softmax)
      .value("sigmoid", Gating::sigmoid)
      .value("softmax_of_selected", Gating::softmax_of_selected)
      .value("softmax_chosen_by_sigmoid", Gating::softmax_chosen_by_sigmoid)
      .finalize();
}

void bind_tensors(py::module_& m) {
  py::class_<DataType>(m, "DataType")
      .def(py::init([](int32_t id, int32_t block_elements, int32_t block_bytes) {
             if (block_elements <= 0 || block_bytes <= 0) throw std::invalid_argument("a data type needs a positive block size");
             return DataType{id, block_elements, block_bytes};
           }),
           "id"_a, "block_elements"_a, "block_bytes"_a)
      .def_readonly("id", &DataType::id)
      .def_readonly("block_elements", &DataType::block_elements)
      .def_readonly("block_bytes", &DataType::block_bytes)
      .def("row_bytes", &DataType::row_bytes, "n"_a)
      .def(
          "__eq__",
          [](const DataType& a, const py::object& other) { return py::isinstance<DataType>(other) && a == other.cast<const DataType&>(); },
          "other"_a)
      .def("__hash__", [](const DataType& type) { return py::hash(py::int_(type.id)); });
  py::class_<Tensor>(m, "Tensor")
      .def(py::init([](std::string name, const DataType& type, const std::array<int64_t, 4>& shape, int64_t n_bytes) {
             return Tensor{.name = std::move(name), .type = type, .shape = shape, .n_bytes = n_bytes};
           }),
           "name"_a, "type"_a, "shape"_a, "n_bytes"_a)
      .def_readonly("name", &Tensor::name)
      .def_readonly("type", &Tensor::type)
      .def_readonly("shape", &Tensor::shape)
      .def_readonly("n_bytes", &Tensor::n_bytes);
  m.def("layer_of", &pshard::layer_of, "tensor_name"_a);
  m.def("local_name", &pshard::local_name, "tensor_name"_a);
  m.def("group_of", &pshard::group_of, "tensor_name"_a);
}

void bind_encoder(py::module_& m) {
  py::class_<Encoder>(m, "Encoder")
      .def(py::init([](std::string kind, bool is_of_sound, std::map<std::string, std::vector<int64_t>, std::less<>> numbers,
                       std::vector<Tensor> tensors) {
             return Encoder{
                 .kind = std::move(kind), .is_of_sound = is_of_sound, .numbers = std::move(numbers), .tensors = std::move(tensors)};
           }),
           "kind"_a, "is_of_sound"_a, "numbers"_a, "tensors"_a)
      .def_readonly("kind", &Encoder::kind)
      .def_readonly("is_of_sound", &Encoder::is_of_sound)
      .def_readonly("tensors", &Encoder::tensors);
  m.def("is_described", &pshard::is_described, "encoder"_a);
}

void bind_parameters(py::module_& m) {
  py::class_<LayerParameters>(m, "LayerParameters")
      .def(py::init<>())
      .def_readwrite("mixer", &LayerParameters::mixer)
      .def_readwrite("n_head", &LayerParameters::n_head)
      .def_readwrite("n_head_kv", &LayerParameters::n_head_kv)
      .def_readwrite("head_dim_k", &LayerParameters::head_dim_k)
      .def_readwrite("head_dim_v", &LayerParameters::head_dim_v)
      .def_readwrite("window", &LayerParameters::window)
      .def_readwrite("conv_state", &LayerParameters::conv_state)
      .def_readwrite("scan_state", &LayerParameters::scan_state)
      .def_readwrite("uses_rope", &LayerParameters::uses_rope)
      .def_readwrite("indexer_dim", &LayerParameters::indexer_dim)
      .def_readwrite("indexer_dim_v", &LayerParameters::indexer_dim_v)
      .def_readwrite("compression", &LayerParameters::compression)
      .def_readwrite("is_selective", &LayerParameters::is_selective)
      .def_readwrite("norms_before_state", &LayerParameters::norms_before_state)
      .def_readwrite("gives_value", &LayerParameters::gives_value)
      .def_readwrite("is_sparse", &LayerParameters::is_sparse)
      .def_readwrite("shared_cache", &LayerParameters::shared_cache);
  py::class_<GraphTraits>(m, "GraphTraits")
      .def(py::init<>())
      .def_readwrite("causal", &GraphTraits::causal)
      .def_readwrite("has_encoder", &GraphTraits::has_encoder)
      .def_readwrite("is_guessed", &GraphTraits::is_guessed)
      .def_readwrite("n_side_by_side", &GraphTraits::n_side_by_side)
      .def_readwrite("caches_by_sequence", &GraphTraits::caches_by_sequence)
      .def_readwrite("keeps_cache", &GraphTraits::keeps_cache)
      .def_readwrite("predicts", &GraphTraits::predicts)
      .def_readwrite("reads_embedding", &GraphTraits::reads_embedding)
      .def_readwrite("repeats_tied_head", &GraphTraits::repeats_tied_head)
      .def_readwrite("loads_head", &GraphTraits::loads_head)
      .def_readwrite("scaled_embedding", &GraphTraits::scaled_embedding)
      .def_readwrite("normed_embedding", &GraphTraits::normed_embedding)
      .def_readwrite("scaled_residual", &GraphTraits::scaled_residual)
      .def_readwrite("scales_normed_input", &GraphTraits::scales_normed_input)
      .def_readwrite("scaled_head_input", &GraphTraits::scaled_head_input)
      .def_readwrite("scaled_logits", &GraphTraits::scaled_logits)
      .def_readwrite("logits_softcap", &GraphTraits::logits_softcap)
      .def_readwrite("positions_per_token", &GraphTraits::positions_per_token)
      .def_readwrite("layer_norm", &GraphTraits::layer_norm)
      .def_readwrite("unweighted_norms", &GraphTraits::unweighted_norms)
      .def_readwrite("experts_down_on_host", &GraphTraits::experts_down_on_host)
      .def_readwrite("head_ignores_adapters", &GraphTraits::head_ignores_adapters)
      .def_readwrite("attention_ignores_adapters", &GraphTraits::attention_ignores_adapters)
      .def_readwrite("routes_layer_input", &GraphTraits::routes_layer_input)
      .def_readwrite("sum", &GraphTraits::sum)
      .def_readwrite("residual_first_in_attention", &GraphTraits::residual_first_in_attention)
      .def_readwrite("residual_first", &GraphTraits::residual_first)
      .def_readwrite("late_rows", &GraphTraits::late_rows)
      .def_readwrite("norms_before_dropping_rows", &GraphTraits::norms_before_dropping_rows)
      .def_readwrite("norms_results_alone", &GraphTraits::norms_results_alone)
      .def_readwrite("fuses_attention", &GraphTraits::fuses_attention)
      .def_readwrite("gated_attention", &GraphTraits::gated_attention)
      .def_readwrite("joined_heads", &GraphTraits::joined_heads)
      .def_readwrite("clamped_qkv", &GraphTraits::clamped_qkv)
      .def_readwrite("scaled_query", &GraphTraits::scaled_query)
      .def_readwrite("norm_behind_rope", &GraphTraits::norm_behind_rope)
      .def_readwrite("norms_values", &GraphTraits::norms_values)
      .def_readwrite("full_layers_scale_rope", &GraphTraits::full_layers_scale_rope)
      .def_readwrite("windows_scale_rope", &GraphTraits::windows_scale_rope)
      .def_readwrite("norm_without_weight", &GraphTraits::norm_without_weight)
      .def_readwrite("temperature", &GraphTraits::temperature)
      .def_readwrite("attention_softcap", &GraphTraits::attention_softcap)
      .def_readwrite("ffn_reads_attention_norm", &GraphTraits::ffn_reads_attention_norm)
      .def_readwrite("squared_activation", &GraphTraits::squared_activation)
      .def_readwrite("gating", &GraphTraits::gating)
      .def_readwrite("n_expert_groups", &GraphTraits::n_expert_groups)
      .def_readwrite("n_expert_groups_used", &GraphTraits::n_expert_groups_used)
      .def_readwrite("normalised_expert_weights", &GraphTraits::normalised_expert_weights)
      .def_readwrite("scaled_expert_weights", &GraphTraits::scaled_expert_weights)
      .def_readwrite("weight_before_ffn", &GraphTraits::weight_before_ffn)
      .def_readwrite("halves_experts", &GraphTraits::halves_experts)
      .def_readwrite("shared_gate_by_ratio", &GraphTraits::shared_gate_by_ratio)
      .def_readwrite("norms_time_step", &GraphTraits::norms_time_step)
      .def_readwrite("repeats_key_heads", &GraphTraits::repeats_key_heads);
  py::class_<Hyperparameters>(m, "Hyperparameters")
      .def(py::init<>())
      .def_readwrite("architecture", &Hyperparameters::architecture)
      .def_readwrite("n_layer", &Hyperparameters::n_layer)
      .def_readwrite("n_layer_nextn", &Hyperparameters::n_layer_nextn)
      .def_readwrite("n_embd", &Hyperparameters::n_embd)
      .def_readwrite("n_states", &Hyperparameters::n_states)
      .def_readwrite("n_deepstack", &Hyperparameters::n_deepstack)
      .def_readwrite("n_vocab", &Hyperparameters::n_vocab)
      .def_readwrite("n_ctx_train", &Hyperparameters::n_ctx_train)
      .def_readwrite("n_expert", &Hyperparameters::n_expert)
      .def_readwrite("n_expert_used", &Hyperparameters::n_expert_used)
      .def_readwrite("kv_lora_rank", &Hyperparameters::kv_lora_rank)
      .def_readwrite("rope_dim", &Hyperparameters::rope_dim)
      .def_readwrite("head_dim_k_mla", &Hyperparameters::head_dim_k_mla)
      .def_readwrite("head_dim_v_mla", &Hyperparameters::head_dim_v_mla)
      .def_readwrite("indexer_n_head", &Hyperparameters::indexer_n_head)
      .def_readwrite("indexer_top_k", &Hyperparameters::indexer_top_k)
      .def_readwrite("ssm_conv_kernel", &Hyperparameters::ssm_conv_kernel)
      .def_readwrite("ssm_inner_size", &Hyperparameters::ssm_inner_size)
      .def_readwrite("ssm_state_size", &Hyperparameters::ssm_state_size)
      .def_readwrite("ssm_group_count", &Hyperparameters::ssm_group_count)
      .def_readwrite("ssm_time_step_rank", &Hyperparameters::ssm_time_step_rank)
      .def_readwrite("traits", &Hyperparameters::traits)
      .def_readwrite("layers", &Hyperparameters::layers);
}

}  // namespace

void bind_model(py::module_& m) {
  bind_enums(m);
  bind_tensors(m);
  bind_encoder(m);
  bind_parameters(m);
  py::class_<Layer>(m, "Layer")
      .def_readonly("parameters", &Layer::parameters)
      .def_readonly("tensors", &Layer::tensors)
      .def_readonly("layer_class", &Layer::layer_class);
  py::class_<Model>(m, "Model")
      .def(py::init<Hyperparameters, std::vector<Tensor>>(), "hyperparameters"_a, "tensors"_a)
      .def_property_readonly("hyperparameters", &Model::hyperparameters)
      .def_property_readonly("layers", &Model::layers)
      .def_property_readonly("embedding", &Model::embedding)
      .def_property_readonly("head", &Model::head)
      .def_property_readonly("tied_head", &Model::tied_head);
  m.def("kv_bytes_per_cell", &pshard::kv_bytes_per_cell, "layer"_a, "type_k"_a, "type_v"_a);
  m.def("state_bytes", &pshard::state_bytes, "layer"_a);
  m.def(
      "skip_strings",
      [](const py::buffer& data, int64_t count) {
        const py::buffer_info info = data.request();
        if (info.ndim != 1 || info.itemsize != 1 || info.strides[0] != 1) throw std::invalid_argument("data must be contiguous bytes");
        const std::span bytes(static_cast<const std::byte*>(info.ptr), static_cast<size_t>(info.size));
        const pshard::SkippedStrings skipped = pshard::skip_strings(bytes, count);
        return py::make_tuple(skipped.n_strings, skipped.n_bytes);
      },
      "data"_a, "count"_a, "Step over whole GGUF strings at the start of data: (strings, bytes).");
}
