// Python objects that threads without the GIL keep, hand on and let go of.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

namespace headrace::bindings {

// Keeps an object; the last one to let go need not hold the GIL.
std::shared_ptr<const void> hold(pybind11::object object);

// Whether this is what `hold` has made; memory may have other owners.
bool is_object(const std::shared_ptr<const void>& holder);

// What `hold` was given, or None for nothing.
pybind11::object held(const std::shared_ptr<const void>& holder);

// Lets go of an object, now or, without the GIL, when `bury_the_dead` is called next.
void let_go(pybind11::object& object);

// With the GIL held.
void bury_the_dead();

}  // namespace headrace::bindings
