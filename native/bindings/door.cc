// The door.  Every method gives up the interpreter's lock where it may wait.
#include "door/door.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/parts.h"
#include "bindings/plane.h"
#include "door/options.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

using door::Door;

// A door that was not closed is closed when it ends, and waits for calls that may wait for the lock.
struct EndWithoutLock {
  void operator()(Door* door) const {
    const py::gil_scoped_release release;
    delete door;
  }
};

// Code, message, and a serialized google.rpc.Status.
using PlainStatus = std::tuple<int, std::string, py::bytes>;

plane::Status status_from(const PlainStatus& plain) {
  const auto& [code, message, details] = plain;
  return {code, message, std::string(details)};
}

}  // namespace

void bind_door(py::module_& module) {
  using Holder = std::unique_ptr<Door, EndWithoutLock>;
  const auto make = [](std::string address, std::string complete_server, std::int64_t max_message_bytes,
                       std::int64_t max_metadata_bytes, std::int64_t max_buffered_bytes,
                       std::int64_t max_concurrent_calls, const PlainStatus& gone, const PlainStatus& too_many_calls,
                       const PlainStatus& too_much_metadata, const PlainStatus& too_large, const PlainStatus& no_room,
                       const PlainStatus& malformed, std::string certificate, std::string key,
                       std::string client_authority, const py::object& plane) {
    door::Options options;
    options.address = std::move(address);
    options.complete_server = std::move(complete_server);
    options.max_message_bytes = max_message_bytes;
    options.max_buffered_bytes = max_buffered_bytes;
    options.max_concurrent_calls = max_concurrent_calls;
    options.max_metadata_bytes = max_metadata_bytes;
    options.gone = status_from(gone);
    options.too_many_calls = status_from(too_many_calls);
    options.too_much_metadata = status_from(too_much_metadata);
    options.too_large = status_from(too_large);
    options.no_room = status_from(no_room);
    options.malformed = status_from(malformed);
    options.tls = {std::move(certificate), std::move(key), std::move(client_authority)};
    return Holder(new Door(std::move(options), plane_from(plane)));
  };
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Door, Holder>(module, "Door")
      .def(py::init(make), py::kw_only(), py::arg("address"), py::arg("complete_server"), py::arg("max_message_bytes"),
           py::arg("max_metadata_bytes"), py::arg("max_buffered_bytes"), py::arg("max_concurrent_calls"),
           py::arg("gone"), py::arg("too_many_calls"), py::arg("too_much_metadata"), py::arg("too_large"),
           py::arg("no_room"), py::arg("malformed"),
           py::arg("certificate") = "", py::arg("key") = "", py::arg("client_authority") = "",
           py::arg("plane") = py::none())
      .def("bind", &Door::bind, release)
      .def("open", &Door::open)
      .def("close", &Door::close, py::arg("grace_seconds"), release)
      .def("hurry", &Door::hurry, release)
      .def_property_readonly("port", &Door::port)
      .def_property_readonly("calls_in_flight", &Door::calls_in_flight);
}

}  // namespace headrace::bindings
