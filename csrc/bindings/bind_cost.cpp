#include <pybind11/native_enum.h>

#include "bindings/bindings.hpp"
#include "cost/op_cost.hpp"
#include "cost/pass_cost.hpp"
#include "cost/switch_cost.hpp"

using namespace py::literals;

void bind_cost(py::module_& m) {
  using pshard::PassTime;
  py::native_enum<pshard::Lane>(m, "Lane", "enum.IntEnum")
      .value("gpu", pshard::Lane::gpu)
      .value("cpu", pshard::Lane::cpu)
      .value("up", pshard::Lane::up)
      .value("down", pshard::Lane::down)
      .value("host_memory", pshard::Lane::host_memory)
      .value("handoff", pshard::Lane::handoff)
      .finalize();
  py::class_<PassTime>(m, "PassTime")
      .def_readonly("seconds", &PassTime::seconds)
      .def_readonly("spread_seconds", &PassTime::spread_seconds)
      .def_readonly("basis", &PassTime::basis)
      .def_readonly("busy_seconds", &PassTime::busy_seconds)
      .def_readonly("critical_seconds", &PassTime::critical_seconds)
      .def_readonly("n_splits", &PassTime::n_splits)
      .def_readonly("weights_up_bytes", &PassTime::weights_up_bytes)
      .def_readonly("activation_bytes", &PassTime::activation_bytes)
      .def_readonly("write_back_bytes", &PassTime::write_back_bytes)
      .def_property_readonly("bottleneck", &PassTime::bottleneck);
  py::class_<pshard::SwitchCost>(m, "SwitchCost")
      .def_readonly("up_bytes", &pshard::SwitchCost::up_bytes)
      .def_readonly("down_bytes", &pshard::SwitchCost::down_bytes)
      .def_readonly("seconds", &pshard::SwitchCost::seconds);
  m.def("distinct_expert_share", &pshard::distinct_expert_share, "n_expert"_a, "n_expert_used"_a, "n_tokens"_a);
  m.def(
      "price_pass",
      [](const pshard::Model& model, const pshard::Machine& machine, const pshard::Pass& pass, const pshard::Placement& placement) {
        check(pass);
        check(placement, model.layers().size());
        return pshard::PassCost(model, machine, pass).price(placement);
      },
      "model"_a, "machine"_a, "pass_"_a, "placement"_a, py::call_guard<py::gil_scoped_release>());
  m.def("switch_cost", &pshard::switch_cost, "model"_a, "machine"_a, "from_"_a, "to"_a, "cache_bytes_per_layer"_a);
}
