// The data plane's face in Python, and what the door needs of it.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "plane/data_plane.h"

namespace headrace::bindings {

// The plane of a Python `Plane`; null for None.  With the GIL held.
std::shared_ptr<plane::DataPlane> plane_from(const pybind11::object& plane);

}  // namespace headrace::bindings
