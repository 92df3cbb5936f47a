// The gate between serving and training.
#include "gate/gate.h"

#include <pybind11/pybind11.h>

#include <cerrno>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

#include "bindings/parts.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

// As OSError with its number, which Python makes the right kind of.
template <typename Make>
gate::Gate made(Make make, const std::string& path) {
  try {
    return make(path);
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    throw py::error_already_set();
  } catch (const std::runtime_error& error) {
    throw py::value_error(error.what());
  }
}

}  // namespace

void bind_gate(py::module_& module) {
  py::class_<gate::Gate, std::shared_ptr<gate::Gate>>(module, "Gate")
      .def_static("serve", [](const std::string& path) { return made(gate::Gate::serve, path); }, py::arg("path"))
      .def_static("train", [](const std::string& path) { return made(gate::Gate::train, path); }, py::arg("path"))
      .def("enter", &gate::Gate::enter)
      .def("leave", &gate::Gate::leave, py::arg("seconds"))
      .def(
          "wait",
          [](const gate::Gate& gate, double max_seconds) {
            if (std::isnan(max_seconds)) throw py::value_error("max_seconds is not a number");
            // Looking is cheaper than letting go of the interpreter.
            if (!gate.looks_busy()) return 0.0;
            py::gil_scoped_release release;
            return gate.wait(max_seconds);
          },
          py::arg("max_seconds"))
      .def_property_readonly("busy", &gate::Gate::busy)
      .def_property_readonly("waiting", &gate::Gate::waiting)
      .def_property_readonly("latency_seconds", &gate::Gate::latency_seconds);
}

}  // namespace headrace::bindings
