#include <pybind11/native_enum.h>

#include "bindings/bindings.hpp"
#include "fleet/assignment.hpp"
#include "fleet/device_costs.hpp"

using namespace py::literals;

void bind_fleet(py::module_& m) {
  using pshard::Assignment;
  using pshard::AssignmentOptions;
  using pshard::Chain;
  using pshard::Stage;
  py::native_enum<pshard::Objective>(m, "Objective", "enum.Enum")
      .value("latency", pshard::Objective::latency)
      .value("throughput", pshard::Objective::throughput)
      .finalize();
  py::class_<Chain>(m, "Chain")
      .def(py::init<>())
      .def_readwrite("n_layer", &Chain::n_layer)
      .def_readwrite("n_device", &Chain::n_device)
      .def_readwrite("layer_seconds", &Chain::layer_seconds)
      .def_readwrite("transfer_seconds", &Chain::transfer_seconds)
      .def_readwrite("entry_seconds", &Chain::entry_seconds)
      .def_readwrite("exit_seconds", &Chain::exit_seconds)
      .def_readwrite("memory_device", &Chain::memory_device)
      .def_readwrite("capacity_bytes", &Chain::capacity_bytes)
      .def_readwrite("layer_bytes", &Chain::layer_bytes)
      .def_readwrite("fixed_bytes", &Chain::fixed_bytes)
      .def_readwrite("entry_bytes", &Chain::entry_bytes)
      .def_readwrite("exit_bytes", &Chain::exit_bytes)
      .def_readwrite("run_table", &Chain::run_table)
      .def_readwrite("run_bytes", &Chain::run_bytes);
  py::class_<Stage>(m, "Stage")
      .def_readonly("device", &Stage::device)
      .def_readonly("begin", &Stage::begin)
      .def_readonly("end", &Stage::end)
      .def_readonly("seconds", &Stage::seconds)
      .def_readonly("transfer_seconds", &Stage::transfer_seconds);
  py::class_<Assignment>(m, "Assignment")
      .def_readonly("feasible", &Assignment::feasible)
      .def_readonly("exact", &Assignment::exact)
      .def_readonly("stages", &Assignment::stages)
      .def_readonly("seconds", &Assignment::seconds)
      .def_readonly("slowest_seconds", &Assignment::slowest_seconds)
      .def_readonly("missing_bytes", &Assignment::missing_bytes)
      .def_readonly("n_orders", &Assignment::n_orders);
  m.def(
      "assign",
      [](const Chain& chain, pshard::Objective objective, bool search_order, bool allow_empty, int32_t max_exact_order) {
        return pshard::assign(chain, {objective, search_order, allow_empty, max_exact_order});
      },
      "chain"_a, py::kw_only(), "objective"_a = pshard::Objective::latency, "search_order"_a = false, "allow_empty"_a = true,
      "max_exact_order"_a = pshard::kMaxExactOrder, py::call_guard<py::gil_scoped_release>());
  using pshard::Cost;
  using pshard::DeviceCosts;
  py::class_<Cost>(m, "Cost")
      .def_readonly("seconds", &Cost::seconds)
      .def_readonly("spread_seconds", &Cost::spread_seconds)
      .def_readonly("basis", &Cost::basis);
  py::class_<DeviceCosts>(m, "DeviceCosts")
      .def_readonly("layers", &DeviceCosts::layers)
      .def_readonly("head", &DeviceCosts::head)
      .def_readonly("embedding", &DeviceCosts::embedding)
      .def_readonly("input_bytes", &DeviceCosts::input_bytes)
      .def_readonly("hidden_bytes", &DeviceCosts::hidden_bytes)
      .def_readonly("logits_bytes", &DeviceCosts::logits_bytes);
  m.def(
      "device_costs",
      [](const pshard::Model& model, const pshard::Machine& machine, const pshard::Pass& pass, bool on_gpu) {
        check(pass);
        return pshard::device_costs(model, machine, pass, on_gpu);
      },
      "model"_a, "machine"_a, "pass_"_a, "on_gpu"_a, py::call_guard<py::gil_scoped_release>());
}
