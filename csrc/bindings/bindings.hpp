// What module.cpp and the bind_*.cpp share: one function per folder of csrc, or per file of probe, which adds its names to the module.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

void bind_model(py::module_& m);
void bind_machine(py::module_& m);
void bind_memory(py::module_& m);
void bind_cost(py::module_& m);
void bind_plan(py::module_& m);
void bind_fleet(py::module_& m);
void bind_latency(py::module_& m);
void bind_probe(py::module_& m);
void bind_probe_cpu(py::module_& m);
void bind_probe_gpu(py::module_& m);
void bind_stream(py::module_& m);
