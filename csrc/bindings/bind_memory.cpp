#include <pybind11/native_enum.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "memory/compute_buffers.hpp"
#include "memory/encoder_buffers.hpp"
#include "memory/kernel_buffers.hpp"
#include "memory/memory.hpp"
#include "model/encoder.hpp"
#include "model/forward.hpp"
#include "model/fusion.hpp"
#include "model/layer_split.hpp"
#include "model/placement.hpp"
#include "model/schedule.hpp"

namespace {

using namespace py::literals;
using pshard::CacheCells;
using pshard::ComputeBuffers;
using pshard::ComputeBytes;
using pshard::ContextParameters;
using pshard::DeviceBytes;
using pshard::EncoderBuffers;
using pshard::GraphInput;
using pshard::Group;
using pshard::KernelDemand;
using pshard::LayerPlacement;
using pshard::MemoryReport;
using pshard::MemoryStage;
using pshard::Model;
using pshard::OpKind;
using pshard::Pass;
using pshard::Placement;
using pshard::TensorException;
using pshard::Where;

void bind_placement(py::module_& m) {
  py::native_enum<Where> where(m, "Where", "enum.IntEnum");
  where.value("pinned", Where::pinned).value("stream_a", Where::stream_a).value("stream_b", Where::stream_b).value("cpu", Where::cpu);
  for (int gpu = 1; gpu < pshard::kMaxGpus; ++gpu) where.value(("gpu" + std::to_string(gpu)).c_str(), pshard::pinned_on(gpu));
  where.finalize();
  m.def(
      "pinned_on",
      [](int gpu) {
        if (gpu < 0 || gpu >= pshard::kMaxGpus)
          throw std::invalid_argument("GPU " + std::to_string(gpu) + "; count from 0 to " + std::to_string(pshard::kMaxGpus - 1));
        return pshard::pinned_on(gpu);
      },
      "gpu"_a);
  m.def("is_pinned", &pshard::is_pinned, "where"_a);
  m.def("gpu_of", &pshard::gpu_of, "where"_a);
  py::class_<LayerPlacement>(m, "LayerPlacement")
      .def(py::init(&LayerPlacement::uniform), "where"_a)
      .def_readwrite("device", &LayerPlacement::device)
      .def(
          "__getitem__", [](const LayerPlacement& p, Group group) { return p.group.at(static_cast<size_t>(group)); }, "group"_a)
      .def(
          "__setitem__", [](LayerPlacement& p, Group group, Where where) { p.group.at(static_cast<size_t>(group)) = where; }, "group"_a,
          "where"_a)
      .def(
          "__eq__", [](const LayerPlacement& a, const LayerPlacement& b) { return a == b; }, "other"_a, py::is_operator())
      .def("__hash__", [](const LayerPlacement& p) {
        auto key = static_cast<int64_t>(p.device);
        for (const Where place : p.group) key = key * 31 + static_cast<int64_t>(place);
        return key;
      });
  py::class_<TensorException>(m, "TensorException")
      .def(py::init([](std::string name, Where where) {
             return TensorException{std::move(name), where};
           }),
           "name"_a, "where"_a)
      .def_readonly("name", &TensorException::name)
      .def_readonly("where", &TensorException::where);
  py::class_<Placement>(m, "Placement")
      .def(py::init<>())
      .def_readwrite("exceptions", &Placement::exceptions)
      .def_readwrite("patterns", &Placement::patterns)
      .def_readwrite("layer_pattern", &Placement::layer_pattern)
      .def_readwrite("head", &Placement::head)
      .def_readwrite("n_gpu", &Placement::n_gpu)
      .def_readwrite("pipeline", &Placement::pipeline)
      .def_readwrite("offload_kqv", &Placement::offload_kqv)
      .def_readwrite("offloads_all", &Placement::offloads_all)
      .def_readwrite("op_offload", &Placement::op_offload)
      .def_readwrite("head_op_offload", &Placement::head_op_offload);
}

void bind_pass(py::module_& m) {
  py::class_<Pass>(m, "Pass")
      .def(py::init<>())
      .def_readwrite("n_tokens", &Pass::n_tokens)
      .def_readwrite("n_outputs", &Pass::n_outputs)
      .def_readwrite("n_seqs", &Pass::n_seqs)
      .def_readwrite("n_streams", &Pass::n_streams)
      .def_readwrite("n_kv", &Pass::n_kv)
      .def_readwrite("n_kv_window", &Pass::n_kv_window)
      .def_readwrite("n_filled", &Pass::n_filled)
      .def_readwrite("flash_attn", &Pass::flash_attn)
      .def_readwrite("type_k", &Pass::type_k)
      .def_readwrite("type_v", &Pass::type_v);
  py::native_enum<OpKind>(m, "OpKind", "enum.IntEnum")
      .value("mul_mat", OpKind::mul_mat)
      .value("mul_mat_id", OpKind::mul_mat_id)
      .value("attention", OpKind::attention)
      .value("attention_kq", OpKind::attention_kq)
      .value("get_rows", OpKind::get_rows)
      .value("elementwise", OpKind::elementwise)
      .value("copy", OpKind::copy)
      .value("scan", OpKind::scan)
      .finalize();
}

// A block's operations as Python sees them: one dict each, for tests and for looking.
py::list describe(const pshard::Block& block) {
  py::list list;
  std::vector<size_t> kernels(block.operations.size());
  std::iota(kernels.begin(), kernels.end(), size_t{0});
  const pshard::Fusion fusion = pshard::fusion_of(block);
  for (const pshard::KernelRun& run : fusion.runs) {
    std::fill(kernels.begin() + run.first, kernels.begin() + run.last + 1, static_cast<size_t>(run.first));
  }
  for (const pshard::Operation& operation : block.operations) {
    py::dict entry;
    entry["kind"] = operation.kind;
    entry["group"] = operation.group;
    entry["weight"] = operation.weight == nullptr ? py::object(py::none()) : py::object(py::str(operation.weight->name));
    entry["n"] = operation.n;
    entry["k"] = operation.k;
    entry["m"] = operation.m;
    entry["flop"] = operation.flop;
    entry["activation_bytes"] = operation.activation_bytes;
    entry["cache_bytes"] = operation.cache_bytes;
    py::list inputs;
    for (const int32_t input : operation.inputs) {
      if (pshard::is_value(input)) inputs.append(input);
    }
    entry["inputs"] = inputs;
    entry["output"] = operation.output;
    entry["output_bytes"] = operation.output == pshard::kNoValue ? 0 : block.values[static_cast<size_t>(operation.output)].n_bytes;
    entry["in_place"] = operation.overwrites != 0;
    entry["is_view"] = operation.is_view;
    const auto index = static_cast<size_t>(py::len(list));
    entry["kernel"] = kernels[index];  // the first operation of the kernel that a GPU computes it in
    entry["inner_bytes"] = fusion.inner_bytes[index];
    list.append(entry);
  }
  return list;
}

void bind_reports(py::module_& m) {
  py::class_<DeviceBytes>(m, "DeviceBytes")
      .def_readonly("weights_bytes", &DeviceBytes::weights_bytes)
      .def_readonly("cache_bytes", &DeviceBytes::cache_bytes)
      .def_readonly("compute_bytes", &DeviceBytes::compute_bytes)
      .def_readonly("stream_bytes", &DeviceBytes::stream_bytes)
      .def("total", &DeviceBytes::total);
  py::class_<MemoryReport>(m, "MemoryReport")
      .def_readonly("gpus", &MemoryReport::gpus)
      .def_property_readonly("gpu", &MemoryReport::gpu)
      .def_readonly("host", &MemoryReport::host);
  py::class_<KernelDemand>(m, "KernelDemand")
      .def_readonly("n_kernels", &KernelDemand::n_kernels)
      .def_readonly("pool_bytes", &KernelDemand::pool_bytes);
  py::class_<ComputeBytes>(m, "ComputeBytes")
      .def_readonly("gpu_bytes", &ComputeBytes::gpu_bytes)
      .def_readonly("gpu_stream_bytes", &ComputeBytes::gpu_stream_bytes)
      .def_readonly("host_bytes", &ComputeBytes::host_bytes);
  py::class_<EncoderBuffers>(m, "EncoderBuffers")
      .def_readonly("gpu_bytes", &EncoderBuffers::gpu_bytes)
      .def_readonly("host_bytes", &EncoderBuffers::host_bytes)
      .def_readonly("output_bytes", &EncoderBuffers::output_bytes)
      .def_readonly("attends_on_gpu", &EncoderBuffers::attends_on_gpu);
  m.def(
      "encoder_buffers",
      [](const pshard::Encoder& encoder, int64_t width, int64_t height, int64_t n_images, bool flash_attn, bool on_gpu,
         int64_t tile_columns) {
        const pshard::EncoderInput input{
            .width = width, .height = height, .n_images = n_images, .tile_columns = tile_columns, .flash_attn = flash_attn};
        return pshard::encoder_buffers(pshard::encoder_block(encoder, input), on_gpu);
      },
      "encoder"_a, "width"_a, "height"_a, "n_images"_a, "flash_attn"_a, "on_gpu"_a, "tile_columns"_a = 0,
      "What one pass of an encoder of images or sound computes in.");
  py::class_<ComputeBuffers>(m, "ComputeBuffers")
      .def(py::init<const Model&, const ContextParameters&, int64_t, int>(), "model"_a, "context"_a, "n_tokens"_a, "n_gpu"_a = 1,
           py::keep_alive<1, 2>())
      .def(
          "__call__",
          [](ComputeBuffers& buffers, const Placement& placement) {
            check(placement, buffers.n_layer());
            return buffers(placement);
          },
          "placement"_a)
      .def(
          "gpu_at_least",
          [](ComputeBuffers& buffers, const Placement& placement) {
            check(placement, buffers.n_layer());
            return buffers.gpu_at_least(placement);
          },
          "placement"_a)
      .def_property_readonly("n_replays", &ComputeBuffers::n_replays);
}

}  // namespace

void bind_memory(py::module_& m) {
  bind_placement(m);
  bind_pass(m);
  py::class_<ContextParameters>(m, "ContextParameters")
      .def(py::init<>())
      .def_readwrite("n_ctx", &ContextParameters::n_ctx)
      .def_readwrite("n_batch", &ContextParameters::n_batch)
      .def_readwrite("n_ubatch", &ContextParameters::n_ubatch)
      .def_readwrite("cell_padding", &ContextParameters::cell_padding)
      .def_readwrite("n_seq_max", &ContextParameters::n_seq_max)
      .def_readwrite("n_outputs_max", &ContextParameters::n_outputs_max)
      .def_readwrite("flash_attn", &ContextParameters::flash_attn)
      .def_readwrite("flash_attn_auto", &ContextParameters::flash_attn_auto)
      .def_readwrite("kv_unified", &ContextParameters::kv_unified)
      .def_readwrite("swa_full", &ContextParameters::swa_full)
      .def_readwrite("pshard_runtime", &ContextParameters::pshard_runtime)
      .def_readwrite("type_k", &ContextParameters::type_k)
      .def_readwrite("type_v", &ContextParameters::type_v);
  py::class_<CacheCells>(m, "CacheCells")
      .def_readonly("n_streams", &CacheCells::n_streams)
      .def_readonly("full", &CacheCells::full)
      .def_readonly("window", &CacheCells::window);
  bind_reports(m);
  m.def("layer_places", &pshard::layer_places, "n_layer"_a, "n_gpu_layers"_a, "shares"_a);
  m.def("cache_cells", &pshard::cache_cells, "model"_a, "context"_a);
  m.def("cache_bytes", &pshard::cache_bytes, "model"_a, "layer"_a, "context"_a, "where"_a = Where::pinned);
  m.def(
      "resolve_flash_attention",
      [](const Model& model, const Placement& placement, const ContextParameters& context) {
        check(placement, model.layers().size());
        return pshard::resolve_flash_attention(model, placement, context);
      },
      "model"_a, "placement"_a, "context"_a);
  m.def("gpu_weight_bytes", &pshard::gpu_weight_bytes, "layer"_a, "placement"_a);
  m.def("host_weight_bytes", &pshard::host_weight_bytes, "layer"_a, "placement"_a);
  m.def("gpu_tensor_bytes", &pshard::gpu_tensor_bytes, "tensor"_a);
  m.def("gpu_head_bytes", &pshard::gpu_head_bytes, "model"_a);
  m.def("host_head_bytes", &pshard::host_head_bytes, "model"_a);
  m.def("embedding_bytes", &pshard::embedding_bytes, "model"_a);
  m.def("resident_memory", &pshard::resident_memory, "model"_a, "placement"_a, "context"_a, "Weights and caches alone.");
  py::native_enum<MemoryStage>(m, "MemoryStage", "enum.IntEnum")
      .value("stated", MemoryStage::stated)
      .value("running", MemoryStage::running)
      .finalize();
  m.def("memory", &pshard::memory, "model"_a, "placement"_a, "context"_a, "n_tokens"_a, "stage"_a = MemoryStage::stated,
        "Bytes per device for one placement.");
  m.def("kernel_demand", &pshard::kernel_demand, "model"_a, "placement"_a, "context"_a, "n_tokens"_a,
        "What CUDA kernels take besides the compute buffers, by GPU.");
  m.def(
      "embedding_operations",
      [](const Model& model, const Pass& pass) {
        check(pass);
        return describe(pshard::embedding_block(model, pass));
      },
      "model"_a, "pass_"_a);
  m.def(
      "layer_operations",
      [](const Model& model, size_t layer, const Pass& pass, bool is_last) {
        check(pass);
        return describe(pshard::layer_block(model, model.layers().at(layer), pass, is_last));
      },
      "model"_a, "layer"_a, "pass_"_a, "is_last"_a = false);
  m.def(
      "head_operations",
      [](const Model& model, const Pass& pass) {
        check(pass);
        return describe(pshard::head_block(model, pass));
      },
      "model"_a, "pass_"_a);
}
