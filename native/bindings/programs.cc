#include "bindings/programs.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/parts.h"
#include "programs/choice.h"
#include "programs/onnxruntime.h"
#include "programs/processors.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

using programs::OnnxProgram;
using programs::OnnxRuntime;
using programs::OnnxRuntimeError;
using programs::Processors;

// Named as the runtime's own package names them, by their number from 1: callers get to see the name.
constexpr std::array<const char*, 14> kErrors{
    "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
    "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail", "ModelLoadCanceled", "ModelRequiresCompilation",
    "NotFound",
};

// Never destroyed: threads may outlive the end of the program's main.
std::vector<py::object>& error_types() {
  static auto* const types = new std::vector<py::object>;
  return *types;
}

py::object exception_of(const OnnxRuntimeError& error) {
  const std::vector<py::object>& types = error_types();
  const auto number = static_cast<std::size_t>(error.code());
  const py::object& type = number > 0 && number <= kErrors.size() ? types[number] : types[0];
  const std::string_view text = error.what();
  return type(py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace")));
}

void bind_errors(py::module_& module) {
  const auto make = [&module](const char* name, const py::handle& parent) {
    const std::string full = std::string("headrace_server._native.") + name;
    auto type = py::reinterpret_steal<py::object>(PyErr_NewException(full.c_str(), parent.ptr(), nullptr));
    if (!type) throw py::error_already_set();
    error_types().push_back(std::move(type));
  };
  make("OnnxRuntimeError", PyExc_RuntimeError);
  for (const char* const name : kErrors) make(name, error_types()[0]);
  module.attr("OnnxRuntimeError") = error_types()[0];
  py::register_exception_translator([](std::exception_ptr failure) {
    try {
      if (failure) std::rethrow_exception(failure);
    } catch (const OnnxRuntimeError& error) {
      const py::object exception = exception_of(error);
      PyErr_SetObject(py::type::of(exception).ptr(), exception.ptr());
    }
  });
}

std::shared_ptr<OnnxProgram> open(const std::string& library, const std::string& path, int num_threads, bool optimises,
                                  std::vector<std::string> input_names, std::vector<std::string> output_names) {
  const py::gil_scoped_release release;
  return std::make_shared<OnnxProgram>(OnnxRuntime::load(library), path, num_threads, optimises,
                                       std::move(input_names), std::move(output_names));
}

py::list run(const OnnxProgram& program, const py::sequence& inputs) {
  if (inputs.size() != program.num_inputs()) throw py::value_error("one array for each input");
  std::vector<batching::Feed> feeds;
  std::vector<py::array> kept;
  for (const py::handle input : inputs) {
    py::array array = py::array::ensure(input, py::array::c_style);
    if (!array) throw py::error_already_set();
    batching::Feed feed;
    feed.element = find_element(array);
    if (!feed.element) throw py::type_error("arrays of numbers only");
    feed.shape.assign(array.shape(), array.shape() + array.ndim());
    // The runtime does not write to what it is given.
    feed.data = static_cast<std::byte*>(const_cast<void*>(array.data()));
    feeds.push_back(std::move(feed));
    kept.push_back(std::move(array));
  }
  std::vector<batching::Output> outputs;
  {
    const py::gil_scoped_release release;
    program.run(feeds, outputs);
  }
  py::list arrays;
  for (const batching::Output& output : outputs) arrays.append(array_of(output));
  return arrays;
}

using AnyProgram = std::shared_ptr<batching::Program>;
using Bucket = std::tuple<std::int64_t, int, AnyProgram, AnyProgram, AnyProgram>;

std::shared_ptr<programs::Choice> choose(const std::vector<Bucket>& buckets, std::shared_ptr<Processors::Runs> runs) {
  std::vector<programs::Bucket> all;
  for (const auto& [max_rows, variant, beside_others, busy, lone] : buckets) {
    all.push_back({max_rows, variant, beside_others, busy, lone});
  }
  return std::make_shared<programs::Choice>(std::move(all), std::move(runs));
}

const char* begin(Processors::Runs& runs) {
  switch (runs.begin()) {
    case programs::Company::kNone: return "none";
    case programs::Company::kOwn: return "own";
    default: return "others";
  }
}

}  // namespace

py::object exception_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const OnnxRuntimeError& error) {
    return exception_of(error);
  } catch (const std::bad_alloc&) {
    return py::reinterpret_borrow<py::object>(PyExc_MemoryError)();
  } catch (const std::exception& error) {
    return py::reinterpret_borrow<py::object>(PyExc_RuntimeError)(error.what());
  }
}

void bind_programs(py::module_& module) {
  bind_errors(module);
  module.def(
      "onnxruntime_version", [](const std::string& library) { return OnnxRuntime::load(library).version(); },
      py::arg("library"), py::call_guard<py::gil_scoped_release>());
  py::class_<batching::Program, std::shared_ptr<batching::Program>>(module, "Program");
  py::class_<OnnxProgram, batching::Program, std::shared_ptr<OnnxProgram>>(module, "OnnxProgram")
      .def(py::init(&open), py::arg("library"), py::arg("path"), py::kw_only(), py::arg("num_threads"),
           py::arg("optimises"), py::arg("input_names"), py::arg("output_names"))
      .def("run", &run, py::arg("inputs"));
  py::class_<Processors, std::shared_ptr<Processors>>(module, "Processors")
      .def(py::init([](std::optional<double> memory_seconds) {
             return memory_seconds ? std::make_shared<Processors>(*memory_seconds) : std::make_shared<Processors>();
           }),
           py::arg("memory_seconds") = py::none());
  py::class_<Processors::Runs, std::shared_ptr<Processors::Runs>>(module, "Runs")
      .def(py::init<std::shared_ptr<Processors>>(), py::arg("processors"))
      .def("begin", &begin)
      .def("end", &Processors::Runs::end);
  py::class_<programs::Choice, batching::Program, std::shared_ptr<programs::Choice>>(module, "Choice")
      .def(py::init(&choose), py::arg("buckets"), py::arg("runs"));
}

}  // namespace headrace::bindings
