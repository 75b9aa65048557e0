#include "bindings/bindings.hpp"
#include "probe/blocks.hpp"
#include "probe/devices.hpp"
#include "probe/gpu_kernels.hpp"
#include "probe/kernels.hpp"

namespace {

using pshard::WeightType;

std::vector<WeightType> weight_types() {
  std::vector<WeightType> types(pshard::kWeightTypes);
  for (std::size_t i = 0; i < types.size(); ++i) types[i] = static_cast<WeightType>(i);
  return types;
}

}  // namespace

void bind_probe(py::module_& m) {
  using pshard::GpuDevice;
  using pshard::GpuQuery;

  py::class_<GpuDevice>(m, "GpuDevice", "A GPU as its driver describes it; a field that the driver does not tell is 0.")
      .def_readonly("name", &GpuDevice::name)
      .def_readonly("pci_bus_id", &GpuDevice::pci_bus_id)
      .def_readonly("total_bytes", &GpuDevice::total_bytes)
      .def_readonly("free_bytes", &GpuDevice::free_bytes)
      .def_readonly("compute_major", &GpuDevice::compute_major)
      .def_readonly("compute_minor", &GpuDevice::compute_minor)
      .def_readonly("multiprocessors", &GpuDevice::multiprocessors)
      .def_readonly("copy_engines", &GpuDevice::copy_engines)
      .def_readonly("memory_bus_bits", &GpuDevice::memory_bus_bits)
      .def_readonly("memory_clock_hertz", &GpuDevice::memory_clock_hertz);

  py::class_<GpuQuery>(m, "GpuQuery", "The GPUs that were found, or why there are none.")
      .def_readonly("devices", &GpuQuery::devices)
      .def_readonly("reason", &GpuQuery::reason);

  py::class_<WeightType>(m, "WeightType", R"(A type of weights, as GGUF stores them.

Attributes
----------
name : str
    As `gguf` spells it.
number : int
    ggml's.
block_columns, block_bytes : int
on_cpu, on_gpu : bool
    Whether there are kernels for it.
is_interleaved : bool
    The CPU's kernels also take it interleaved by rows.)")
      .def_property_readonly("name", [](WeightType type) { return pshard::name_of(type); })
      .def_property_readonly("number", [](WeightType type) { return pshard::format_of(type).number; })
      .def_property_readonly("block_columns", [](WeightType type) { return pshard::format_of(type).columns; })
      .def_property_readonly("block_bytes", [](WeightType type) { return pshard::format_of(type).bytes; })
      .def_property_readonly("on_cpu", &pshard::cpu_multiplies)
      .def_property_readonly("on_gpu", &pshard::gpu_multiplies)
      .def_property_readonly("is_interleaved", &pshard::cpu_interleaves);
  m.def("weight_types", &weight_types, "Types of weights whose blocks are known here.");

  m.attr("built_with_cuda") = pshard::built_with_cuda();
  m.def(
      "query_gpus", &pshard::query_gpus, py::call_guard<py::gil_scoped_release>(),
      "Ask the CUDA runtime for the GPUs of this machine. Opens a context on each; an absent driver or device is an answer, not an error.");
}
