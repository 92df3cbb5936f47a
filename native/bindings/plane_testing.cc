// What the tests of the data plane look at from Python: its readers and writers, one by one, beside protobuf's own.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/parts.h"
#include "plane/answer.h"
#include "plane/question.h"
#include "plane/statuses.h"
#include "plane/wire/open_inference.h"
#include "plane/wire/predict.h"
#include "plane/wire/stream_answers.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

using plane::Bytes;
using plane::Piece;
using plane::Question;
using Pieces = std::vector<std::string>;

// Each piece lies in memory of exactly its size, so that a sanitizer sees what reads over its end.
struct Copy {
  std::vector<std::unique_ptr<std::byte[]>> memory;
  std::vector<Piece> pieces;

  explicit Copy(const Pieces& texts) {
    for (const std::string& text : texts) {
      memory.emplace_back(new std::byte[text.size()]);
      std::copy_n(reinterpret_cast<const std::byte*>(text.data()), text.size(), memory.back().get());
      pieces.push_back({memory.back().get(), text.size()});
    }
  }
};

py::bytes join(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& piece : pieces) text.append(reinterpret_cast<const char*>(piece.data), piece.size);
  return text;
}

py::bytes as_bytes(const plane::Block& block) {
  return {reinterpret_cast<const char*>(block.data()), block.size()};
}

py::dict as_dict(const Question& question) {
  py::list inputs;
  for (const plane::Tensor& tensor : question.inputs) {
    const std::string name(tensor.name);
    if (tensor.is_text) {
      py::list texts;
      for (const std::string_view text : tensor.texts) texts.append(std::string(text));
      inputs.append(py::make_tuple(name, "STRING", tensor.shape, texts));
    } else {
      inputs.append(
          py::make_tuple(name, std::string(name_of(tensor.element)), tensor.shape, join(tensor.pieces)));
    }
  }
  py::list outputs;
  for (const std::string_view name : question.output_names) outputs.append(std::string(name));
  py::dict read;
  read["model"] = std::string(question.model);
  read["version"] = std::string(question.version);
  read["inputs"] = inputs;
  read["output_names"] = outputs;
  read["priority"] = question.priority;
  read["timeout_seconds"] = question.timeout_seconds;
  read["id"] = std::string(question.id);
  read["is_raw"] = question.is_raw;
  return read;
}

std::optional<py::dict> read_predict(const Pieces& message) {
  const Copy copy(message);
  Question question;
  if (!plane::wire::read_predict(plane::wire::Reader(copy.pieces), question)) return std::nullopt;
  return as_dict(question);
}

std::optional<py::dict> read_infer(const Pieces& message) {
  const Copy copy(message);
  Question question;
  if (!plane::wire::read_infer(plane::wire::Reader(copy.pieces), question)) return std::nullopt;
  return as_dict(question);
}

std::optional<py::tuple> read_stream_request(const Pieces& message) {
  const Copy copy(message);
  plane::wire::StreamRequest request;
  if (!plane::wire::read_stream_request(plane::wire::Reader(copy.pieces), request)) return std::nullopt;
  return py::make_tuple(std::string(request.id), join(request.request), request.timeout_seconds);
}

std::optional<std::pair<std::string, std::string>> read_model_question(const Pieces& message) {
  const Copy copy(message);
  plane::wire::ModelQuestion question;
  if (!plane::wire::read_model_question(plane::wire::Reader(copy.pieces), question)) return std::nullopt;
  return std::pair(std::string(question.model), std::string(question.version));
}

// (name, element, shape, data)
using OutputArray = std::tuple<std::string, std::string, std::vector<std::int64_t>, py::bytes>;
// (queue, assemble, compute, respond) in seconds, rows, calls
using Times = std::tuple<double, double, double, double, std::int64_t, std::int64_t>;

// Writes an answer as lanes would: slice by slice, each the first rows of a batch of its own.
py::bytes write_answer(int form, const std::string& id, const std::vector<OutputArray>& arrays,
                       const std::vector<std::int64_t>& slices, bool is_raw, const Times& times,
                       const std::string& predict_provenance, const std::string& infer_provenance) {
  plane::Version version;
  version.provenance.push_back({predict_provenance, infer_provenance});
  std::vector<std::size_t> chosen;
  std::vector<batching::Output> outputs;
  std::vector<std::string> contents;
  contents.reserve(arrays.size());
  for (const auto& [name, element, shape, data] : arrays) {
    chosen.push_back(chosen.size());
    version.outputs.push_back({name, *element_named(element), shape, false, nullptr});
    contents.push_back(data);
    batching::Output& output = outputs.emplace_back();
    output.element = element_named(element);
    output.shape = shape;
    output.size_bytes = contents.back().size();
    output.data = reinterpret_cast<const std::byte*>(contents.back().data());
    if (!slices.empty()) output.row_bytes = output.size_bytes / static_cast<std::size_t>(shape.at(0));
  }
  plane::Answer answer;
  answer.begin(static_cast<plane::Form>(form), version, id, chosen, is_raw);
  if (slices.empty()) {
    answer.take({outputs, 0, 1, 0, 1, true});
  }
  std::int64_t rows = 0;
  for (const std::int64_t slice : slices) rows += slice;
  std::int64_t first = 0;
  for (const std::int64_t slice : slices) {
    answer.take({outputs, first, slice, first, rows, false});
    first += slice;
  }
  batching::Timing timing;
  double respond_seconds = 0;
  std::tie(timing.queue_seconds, timing.assemble_seconds, timing.compute_seconds, respond_seconds, timing.batch_rows,
           timing.batch_calls) = times;
  return as_bytes(answer.finish(timing, respond_seconds));
}

// Reads a request and writes an answer with one output of 10 FP32, so many times; returns the seconds of one.
double time_answers(bool is_predict, const std::string& request, std::size_t num_times) {
  const py::gil_scoped_release release;
  const Copy copy({request});
  plane::Version version;
  version.provenance.push_back({std::string(120, 'p'), std::string(160, 'p')});
  version.outputs.push_back({"y", Element::kFp32, {-1, 10}, false, nullptr});
  const std::vector<float> values(10, 1.0F);
  batching::Output output;
  output.element = Element::kFp32;
  output.shape = {1, 10};
  output.data = reinterpret_cast<const std::byte*>(values.data());
  output.size_bytes = 40;
  output.row_bytes = 40;
  const std::vector<batching::Output> outputs{output};
  batching::Timing timing;
  timing.queue_seconds = 0.000123;
  timing.batch_rows = timing.batch_calls = 1;
  std::size_t num_bytes = 0;
  const auto started_at = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < num_times; ++i) {
    Question question;
    const plane::wire::Reader reader(copy.pieces);
    if (!(is_predict ? plane::wire::read_predict(reader, question) : plane::wire::read_infer(reader, question))) {
      throw std::invalid_argument("The request is not one that is read here.");
    }
    plane::Answer answer;
    answer.begin(is_predict ? plane::Form::kPredict : plane::Form::kInfer, version, question.id, {0}, question.is_raw);
    answer.take({outputs, 0, 1, 0, 1, false});
    num_bytes += answer.finish(timing, 0.00001).size();
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started_at;
  return num_bytes > 0 ? took.count() / static_cast<double>(num_times) : 0.0;
}

using PlainStatus = std::tuple<int, std::string, py::bytes>;

PlainStatus plain(const plane::Status& status) { return {status.code, status.message, status.details}; }

PlainStatus refusal_status(bool is_expired, const std::string& why, double queue_seconds, std::int64_t waiting_rows,
                           std::int64_t limit, double retry_after_seconds, const std::string& version) {
  batching::Refusal refusal;
  refusal.kind = is_expired ? batching::Refusal::Kind::kExpired : batching::Refusal::Kind::kNoPermit;
  refusal.why = why;
  refusal.queue_seconds = queue_seconds;
  refusal.waiting_rows = waiting_rows;
  refusal.limit = limit;
  refusal.retry_after_seconds = retry_after_seconds;
  return plain(plane::status_of(refusal, version));
}

}  // namespace

void bind_plane_testing(py::module_& module) {
  py::module_ testing = module.def_submodule("plane_testing", "The data plane's readers and writers, for its tests.");
  testing.def("read_predict", &read_predict, py::arg("message"));
  testing.def("read_infer", &read_infer, py::arg("message"));
  testing.def("read_stream_request", &read_stream_request, py::arg("message"));
  testing.def("read_model_question", &read_model_question, py::arg("message"));
  testing.def("write_answer", &write_answer, py::arg("form"), py::arg("request_id"), py::arg("arrays"), py::arg("slices"),
              py::arg("is_raw"), py::arg("times"), py::arg("predict_provenance"), py::arg("infer_provenance"));
  testing.def("time_answers", &time_answers, py::arg("is_predict"), py::arg("request"), py::arg("num_times"));
  testing.def("predict_answer", [](const std::string& id, const Pieces& response) {
    return as_bytes(plane::wire::predict_answer(id, Copy(response).pieces));
  });
  testing.def("predict_refusal", [](const std::string& id, int code, const std::string& message, const std::string& details) {
    return as_bytes(plane::wire::predict_refusal(id, {code, message, details}));
  });
  testing.def("infer_answer",
              [](const Pieces& response) { return as_bytes(plane::wire::infer_answer(Copy(response).pieces)); });
  testing.def("infer_refusal", [](const std::string& id, int code, const std::string& message, const std::string& details) {
    return as_bytes(plane::wire::infer_refusal(id, {code, message, details}));
  });
  testing.def("refusal_status", &refusal_status, py::arg("is_expired"), py::arg("why"), py::arg("queue_seconds"),
              py::arg("waiting_rows"), py::arg("limit"), py::arg("retry_after_seconds"), py::arg("version"));
  testing.def("timed_out", [](double timeout_seconds) { return plain(plane::timed_out(timeout_seconds)); });
  testing.def("draining", [] { return plain(plane::draining()); });
  testing.def("invalid_spec", [](const std::string& field, const std::string& description) {
    return plain(plane::invalid_spec(field, description));
  });
  testing.def("quote", [](const std::string& text) { return plane::quote(text); });
}

}  // namespace headrace::bindings
