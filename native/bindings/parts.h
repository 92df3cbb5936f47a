// What the module is made of.
#pragma once

#include <pybind11/pybind11.h>

namespace headrace::bindings {

// Refusal becomes ValueError, UnsupportedConversion TypeError, BadLayout BufferError.
void bind_refusals(pybind11::module_& module);

void bind_gather(pybind11::module_& module);

void bind_gate(pybind11::module_& module);

void bind_programs(pybind11::module_& module);

void bind_cuda_gather(pybind11::module_& module);

void bind_batching(pybind11::module_& module);

// Only where gRPC for C++ was found.
void bind_door(pybind11::module_& module);

void bind_plane(pybind11::module_& module);

void bind_plane_testing(pybind11::module_& module);

}  // namespace headrace::bindings
