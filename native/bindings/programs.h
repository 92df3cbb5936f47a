// Programs that run without Python, and what Python sees of how they fail.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

namespace headrace::bindings {

// As the exception that Python would have raised.  With the GIL held.
pybind11::object exception_of(const std::exception_ptr& failure);

}  // namespace headrace::bindings
