// The data plane.  What Python decides comes as one snapshot; what is counted is read when somebody asks.
#include "bindings/plane.h"

#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/batching.h"
#include "bindings/objects.h"
#include "bindings/parts.h"
#include "plane/data_plane.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

using plane::CallMeters;
using plane::DataPlane;
using plane::Method;
using plane::Route;
using plane::Routes;
using plane::Span;
using plane::Status;
using plane::Version;

// (name, element, shape, whether only finite numbers are taken, the texts that its numbers stand for)
using PlainSpec = std::tuple<std::string, std::string, std::vector<std::int64_t>, bool, std::vector<std::string>>;
// (fields of a PredictResponse, fields of a ModelInferResponse)
using PlainProvenance = std::pair<py::bytes, py::bytes>;
// (model, version or nothing, what serves it, ModelMetadataResponse)
using PlainRoute = std::tuple<std::string, std::string, std::shared_ptr<Version>, py::bytes>;

std::vector<plane::TensorSpec> specs_from(const std::vector<PlainSpec>& plain) {
  std::vector<plane::TensorSpec> specs;
  specs.reserve(plain.size());
  for (const auto& [name, element_name, shape, finite_only, texts] : plain) {
    const std::optional<Element> element = element_named(element_name);
    if (!element) throw std::invalid_argument("There is no element type " + element_name + ".");
    specs.push_back({name, *element, shape, finite_only,
                     texts.empty() ? nullptr : std::make_shared<const plane::Categories>(texts)});
  }
  return specs;
}

std::shared_ptr<Version> make_version(std::string name, const PythonBatcher& batcher,
                                      const std::vector<PlainSpec>& inputs, const std::vector<PlainSpec>& outputs,
                                      bool takes_rows, const std::vector<PlainProvenance>& provenance) {
  if (inputs.empty()) throw std::invalid_argument("A version without inputs has nothing to be batched by.");
  if (provenance.empty()) throw std::invalid_argument("A version needs the provenance of what runs.");
  for (const PlainSpec& spec : inputs) {
    if (takes_rows && std::get<2>(spec).empty()) throw std::invalid_argument("An input without axes has no rows.");
  }
  auto version = std::make_shared<Version>();
  version->name = std::move(name);
  version->batcher = batcher.core();
  version->inputs = specs_from(inputs);
  version->outputs = specs_from(outputs);
  version->takes_rows = takes_rows;
  for (const auto& [predict, infer] : provenance) version->provenance.push_back({predict, infer});
  return version;
}

plane::TellError teller_of(const py::object& tell) {
  return [holder = hold(tell)](const batching::Refusal& refusal) -> Status {
    const py::gil_scoped_acquire acquire;
    try {
      const auto [code, message, details] =
          held(holder)(python_error(refusal)).cast<std::tuple<int, std::string, py::bytes>>();
      return {code, message, details};
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("telling a caller of an error");
      return {static_cast<int>(plane::Code::kInternal), "a fault of the server", {}};
    }
  };
}

std::shared_ptr<DataPlane> make_plane(std::vector<double> latency_bounds, std::size_t stream_window,
                                      const py::object& tell_error) {
  if (stream_window == 0) throw std::invalid_argument("A stream needs room for one request.");
  return std::make_shared<DataPlane>(std::move(latency_bounds), stream_window, teller_of(tell_error));
}

void turn(DataPlane& plane, const std::vector<PlainRoute>& plain) {
  auto routes = std::make_shared<Routes>();
  for (const auto& [model, version, serving, metadata] : plain) {
    routes->add(model, version, std::make_shared<const Route>(Route{serving, metadata}));
  }
  // What nobody holds any more ends here, and a batcher may wait for its own lock.
  const py::gil_scoped_release release;
  plane.turn(std::move(routes));
}

std::optional<std::string> find(const DataPlane& plane, const std::string& model, const std::string& version) {
  const std::shared_ptr<const Route> route = plane.signpost().find(model, version);
  if (!route) return std::nullopt;
  return route->version->name;
}

py::dict read_counts(DataPlane& plane) {
  py::dict all;
  for (std::size_t i = 0; i < plane::kMethodNames.size(); ++i) {
    const CallMeters::Counts counts = plane.meters().read(static_cast<Method>(i));
    py::dict codes;
    for (std::size_t code = 0; code < counts.by_code.size(); ++code) {
      if (counts.by_code[code] > 0) codes[py::int_(code)] = counts.by_code[code];
    }
    py::dict passed;
    for (std::size_t reason = 0; reason < counts.passed.size(); ++reason) {
      if (counts.passed[reason] > 0) passed[py::str(std::string(plane::kPassReasons[reason]))] = counts.passed[reason];
    }
    all[py::str(std::string(plane::kMethodNames[i]))] =
        py::make_tuple(codes, counts.seconds, counts.seconds_sum, passed);
  }
  return all;
}

template <std::size_t size>
py::bytes id_of(const std::array<std::uint8_t, size>& id) {
  return {reinterpret_cast<const char*>(id.data()), size};
}

py::list take_spans(DataPlane& plane) {
  py::list taken;
  for (const Span& span : plane.spans().take()) {
    py::dict fields;
    fields["method"] = std::string(plane::kMethodNames[static_cast<std::size_t>(span.method)]);
    fields["trace_id"] = id_of(span.trace_id);
    fields["span_id"] = id_of(span.span_id);
    fields["parent_id"] = id_of(span.parent_id);
    fields["tracestate"] = span.tracestate;
    fields["started_at_nanos"] = span.started_at_nanos;
    fields["ended_at_nanos"] = span.ended_at_nanos;
    fields["code"] = span.code;
    fields["version"] = span.version;
    fields["queue_seconds"] = span.timing.queue_seconds;
    fields["assemble_seconds"] = span.timing.assemble_seconds;
    fields["compute_seconds"] = span.timing.compute_seconds;
    fields["batch_rows"] = span.timing.batch_rows;
    fields["batch_calls"] = span.timing.batch_calls;
    taken.append(fields);
  }
  return taken;
}

}  // namespace

std::shared_ptr<DataPlane> plane_from(const py::object& plane) {
  return plane.is_none() ? nullptr : plane.cast<std::shared_ptr<DataPlane>>();
}

void bind_plane(py::module_& module) {
  py::class_<Version, std::shared_ptr<Version>>(module, "ServedVersion")
      .def(py::init(&make_version), py::kw_only(), py::arg("name"), py::arg("batcher"), py::arg("inputs"),
           py::arg("outputs"), py::arg("takes_rows"), py::arg("provenance"));
  py::class_<DataPlane, std::shared_ptr<DataPlane>>(module, "Plane")
      .def(py::init(&make_plane), py::kw_only(), py::arg("latency_bounds"), py::arg("stream_window"),
           py::arg("tell_error"))
      .def("turn", &turn, py::arg("routes"))
      .def("find", &find, py::arg("model"), py::arg("version"))
      .def("set_serving", &DataPlane::set_serving, py::arg("is_serving"))
      .def("drain", &DataPlane::drain, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("calls_in_flight", [](DataPlane& plane) { return plane.meters().in_flight(); })
      .def("read_counts", &read_counts)
      .def("trace", [](DataPlane& plane, double ratio) { plane.spans().set_ratio(ratio); }, py::arg("ratio"))
      .def("take_spans", &take_spans)
      .def_property_readonly("num_spans_left_out", [](DataPlane& plane) { return plane.spans().num_left_out(); });
}

}  // namespace headrace::bindings
