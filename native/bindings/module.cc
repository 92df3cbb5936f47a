// The Python module.  Each file in this folder binds one part; nothing outside this folder knows Python.
#include <pybind11/pybind11.h>

#include "bindings/parts.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native parts of the server.";
  headrace::bindings::bind_refusals(module);
  headrace::bindings::bind_gather(module);
  headrace::bindings::bind_cuda_gather(module);
}
