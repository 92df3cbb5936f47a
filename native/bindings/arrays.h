// The element types of NumPy arrays.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "batching/call.h"
#include "gather/element.h"

namespace headrace::bindings {

// Nothing for objects, for types that the contract does not have, and for bytes in the order of another machine.
std::optional<Element> find_element(const pybind11::array& array);

// The type of arrays of this element.
pybind11::dtype dtype_of(Element element);

// Memory that a base object keeps alive, as an array.
pybind11::array array_over(Element element, const std::vector<std::int64_t>& shape, const void* data,
                           const pybind11::handle& base);

// An object that keeps something alive.
template <class T>
pybind11::capsule keeper_of(std::shared_ptr<T> owner) {
  return pybind11::capsule(new std::shared_ptr<T>(std::move(owner)),
                           [](void* held) { delete static_cast<std::shared_ptr<T>*>(held); });
}

// An output of elements that are numbers, as an array that keeps it alive.
pybind11::array array_of(const batching::Output& output);

}  // namespace headrace::bindings
