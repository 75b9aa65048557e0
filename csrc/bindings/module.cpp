// The compiled half of pshard. One bind_*.cpp per folder of csrc; this file only names them.
#include "bindings/bindings.hpp"

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled core of pshard: model, machine, memory, cost, plan, fleet and latency.";
  bind_model(m);
  bind_machine(m);
  bind_memory(m);
  bind_cost(m);
  bind_plan(m);
  bind_fleet(m);
  bind_latency(m);
  bind_probe(m);
  bind_probe_cpu(m);
  bind_probe_gpu(m);
  bind_stream(m);
}
