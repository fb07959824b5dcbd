#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_config(py::module_& m);
void bind_softmax(py::module_& m);
void bind_tokens(py::module_& m);
void bind_attention(py::module_& m);

void bind_advantages(py::module_& m);
void bind_policy(py::module_& m);
void bind_returns(py::module_& m);
void bind_perturb(py::module_& m);
