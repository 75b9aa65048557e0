#include "bindings/bindings.hpp"
#include "probe/devices.hpp"

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

  m.attr("built_with_cuda") = pshard::built_with_cuda();
  m.def(
      "query_gpus", &pshard::query_gpus, py::call_guard<py::gil_scoped_release>(),
      "Ask the CUDA runtime for the GPUs of this machine. Opens a context on each; an absent driver or device is an answer, not an error.");
}
