// The element types of NumPy arrays.
#pragma once

#include <pybind11/numpy.h>

#include <optional>

#include "gather/element.h"

namespace headrace::bindings {

// Nothing for objects, for types that the contract does not have, and for bytes in the order of another machine.
std::optional<Element> find_element(const pybind11::array& array);

// The type of arrays of this element.
pybind11::dtype dtype_of(Element element);

}  // namespace headrace::bindings
