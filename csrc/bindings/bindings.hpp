#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

void bind_model(py::module_& m);
void bind_machine(py::module_& m);
void bind_memory(py::module_& m);
void bind_cost(py::module_& m);
void bind_plan(py::module_& m);
void bind_probe(py::module_& m);
