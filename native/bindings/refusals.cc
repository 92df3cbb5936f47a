// Turns the reasons why a copy is refused into Python's own exceptions.
#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/parts.h"
#include "gather/refusal.h"

namespace headrace::bindings {

void bind_refusals(pybind11::module_&) {
  pybind11::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const UnsupportedConversion& refusal) {
      pybind11::set_error(PyExc_TypeError, refusal.what());
    } catch (const BadLayout& refusal) {
      pybind11::set_error(PyExc_BufferError, refusal.what());
    } catch (const Refusal& refusal) {
      pybind11::set_error(PyExc_ValueError, refusal.what());
    }
  });
}

}  // namespace headrace::bindings
