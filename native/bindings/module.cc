// The Python module.  Each file in this folder binds one part; nothing outside this folder knows Python.
#include <pybind11/pybind11.h>

#include "bindings/parts.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native parts of the server.";
  headrace::bindings::bind_refusals(module);
  headrace::bindings::bind_gather(module);
  headrace::bindings::bind_cuda_gather(module);
  headrace::bindings::bind_gate(module);
  headrace::bindings::bind_programs(module);
  headrace::bindings::bind_batching(module);
#ifdef HEADRACE_DOOR_BUILT
  headrace::bindings::bind_door(module);
  module.attr("door_built") = true;
#else
  module.attr("door_built") = false;
#endif
  headrace::bindings::bind_plane(module);
  headrace::bindings::bind_plane_testing(module);
}
