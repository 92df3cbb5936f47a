// What Python sees of the batcher; `server/headrace_server/inference/batcher.py` is its face there.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/batching.h"
#include "bindings/objects.h"
#include "bindings/parts.h"
#include "programs/gated.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

using batching::LaneGroup;
using batching::Meters;
using batching::Refusal;
using batching::Timing;

constexpr std::array<const char*, batching::kNumReasons> kReasons{"full", "idle", "delay", "deadline", "drain"};

const char* name_of(batching::Reason reason) { return kReasons[static_cast<std::size_t>(reason)]; }

const char* name_of(Refusal::Kind kind) {
  switch (kind) {
    case Refusal::Kind::kNoPermit: return "no_permit";
    case Refusal::Kind::kLate: return "late";
    case Refusal::Kind::kExpired: return "expired";
    case Refusal::Kind::kClosed: return "closed";
    default: return "error";
  }
}

// A clock in Python, asked by threads without the GIL.
batching::Clock clock_of(const py::object& clock) {
  if (clock.is_none()) return {};
  return [holder = hold(clock)] {
    const py::gil_scoped_acquire acquire;
    return held(holder)().cast<double>();
  };
}

py::tuple face_of(const batching::Histogram& histogram) {
  return py::make_tuple(histogram.bounds, histogram.counts, histogram.sum);
}

py::dict read(const Meters& meters) {
  const batching::Counts counts = meters.read();
  py::dict batches;
  for (std::size_t i = 0; i < kReasons.size(); ++i) batches[kReasons[i]] = counts.batches[i];
  py::dict runs;
  for (const auto& [rows, past] : counts.runs) {
    runs[py::int_(rows)] = py::make_tuple(past.num_runs, past.assemble_seconds, past.compute_seconds);
  }
  py::dict all;
  all["queue_seconds_histogram"] = face_of(counts.queue_seconds);
  all["compute_seconds_histogram"] = face_of(counts.compute_seconds);
  all["batch_rows_histogram"] = face_of(counts.batch_rows);
  all["batches"] = batches;
  all["outcomes"] = counts.outcomes;
  all["shed"] = counts.shed;
  all["num_answered"] = counts.num_answered;
  all["answered_rows"] = counts.answered_rows;
  all["answered_seconds"] = counts.answered_seconds;
  all["queue_seconds"] = counts.queue_sum;
  all["assemble_seconds"] = counts.assemble_sum;
  all["compute_seconds"] = counts.compute_sum;
  all["respond_seconds"] = counts.respond_sum;
  all["num_failed"] = counts.num_failed;
  all["failed_seconds"] = counts.failed_seconds;
  all["last_call_at"] = counts.last_call_at;
  all["runs"] = runs;
  return all;
}

// What the model has returned, or, of a program's outputs, arrays by name.
py::object outputs_of(const Ticket& ticket, const std::vector<batching::Output>& outputs) {
  if (!outputs.empty() && is_object(outputs[0].owner)) return held(outputs[0].owner);
  py::dict arrays;
  for (std::size_t i = 0; i < outputs.size(); ++i) arrays[py::str(ticket.output_names()->at(i))] = array_of(outputs[i]);
  return arrays;
}

// (outputs, first row there, number of rows, whether they are the whole answer), in the order of the call's rows.
py::list rows_of(const Ticket& ticket) {
  std::vector<Ticket::Rows> rows = ticket.rows();
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  py::list faces;
  for (const Ticket::Rows& share : rows) {
    faces.append(py::make_tuple(outputs_of(ticket, share.outputs), share.row, share.rows, share.is_whole));
  }
  return faces;
}

py::list empty(Mailbox& mailbox) {
  bury_the_dead();
  py::list tickets;
  for (const std::shared_ptr<Ticket>& ticket : mailbox.empty()) {
    // Slices of a call that was refused may still run.
    if (!ticket->refusal()) ticket->forget_inputs();
    tickets.append(py::cast(ticket));
  }
  return tickets;
}

void bind_calls(py::module_& module) {
  py::class_<Mailbox, std::shared_ptr<Mailbox>>(module, "Mailbox")
      .def(py::init<>())
      .def("fileno", &Mailbox::descriptor)
      .def("empty", &empty);
  py::class_<Refusal>(module, "Refusal")
      .def_property_readonly("kind", [](const Refusal& refusal) { return name_of(refusal.kind); })
      .def_readonly("why", &Refusal::why)
      .def_readonly("queue_seconds", &Refusal::queue_seconds)
      .def_readonly("waiting_rows", &Refusal::waiting_rows)
      .def_readonly("limit", &Refusal::limit)
      .def_readonly("retry_after_seconds", &Refusal::retry_after_seconds)
      .def_property_readonly("error", &python_error);
  py::class_<Timing>(module, "Timing")
      .def_readonly("queue_seconds", &Timing::queue_seconds)
      .def_readonly("assemble_seconds", &Timing::assemble_seconds)
      .def_readonly("compute_seconds", &Timing::compute_seconds)
      .def_readonly("finished_at", &Timing::finished_at)
      .def_readonly("batch_rows", &Timing::batch_rows)
      .def_readonly("batch_calls", &Timing::batch_calls)
      .def_readonly("variant", &Timing::variant);
  py::class_<Ticket, std::shared_ptr<Ticket>>(module, "Ticket")
      .def_property_readonly("future", &Ticket::future)
      .def_property_readonly("refusal", &Ticket::refusal)
      .def_property_readonly("timing", &Ticket::timing)
      .def_property_readonly("rows", &rows_of);
}

void bind_meters(py::module_& module) {
  py::class_<Meters, std::shared_ptr<Meters>>(module, "Meters")
      .def(py::init<std::vector<double>, std::vector<double>>(), py::arg("latency_bounds"), py::arg("row_bounds"))
      .def(
          "answered",
          [](Meters& meters, std::int64_t rows, double queue_seconds, double assemble_seconds, double compute_seconds,
             double respond_seconds, double total_seconds) {
            meters.answered({{rows, queue_seconds, assemble_seconds, compute_seconds, total_seconds}});
            meters.responded(respond_seconds);
          },
          py::arg("rows"), py::arg("queue_seconds"), py::arg("assemble_seconds"), py::arg("compute_seconds"),
          py::arg("respond_seconds"), py::arg("total_seconds"))
      .def("ended", &Meters::ended, py::arg("outcome"), py::arg("seconds"))
      .def("responded", &Meters::responded, py::arg("seconds"))
      .def("read", &read);
}

void bind_lanes(py::module_& module) {
  py::class_<LaneGroup, std::shared_ptr<LaneGroup>>(module, "LaneGroup")
      .def(py::init([](std::size_t num_lanes, const py::object& clock) {
             return std::make_shared<LaneGroup>(num_lanes, clock_of(clock));
           }),
           py::arg("num_lanes"), py::arg("clock") = py::none())
      .def_property_readonly("num_lanes", &LaneGroup::num_lanes)
      .def_property_readonly("is_closed", &LaneGroup::is_closed)
      .def("take", &take, py::arg("lane"), py::arg("timeout_seconds") = py::none())
      .def("ring", &LaneGroup::ring, py::arg("lane"))
      .def("close", &LaneGroup::close);
  py::class_<PythonBatch, std::shared_ptr<PythonBatch>>(module, "Batch")
      .def_readonly("batcher", &PythonBatch::batcher)
      .def_readonly("inputs", &PythonBatch::inputs)
      .def_readonly("rows", &PythonBatch::rows)
      .def_readonly("calls", &PythonBatch::calls)
      .def_readonly("lane", &PythonBatch::lane)
      .def_property_readonly("reason", [](const PythonBatch& batch) { return name_of(batch.reason); })
      .def_readonly("assemble_seconds", &PythonBatch::assemble_seconds)
      .def_readonly("failure", &PythonBatch::failure);
}

std::shared_ptr<PythonBatcher> open(std::int64_t max_batch_rows, std::size_t max_batch_bytes,
                                    std::int64_t max_waiting_rows, std::size_t max_waiting_bytes,
                                    double max_delay_seconds, bool is_batchable,
                                    const std::vector<std::string>& input_names,
                                    const std::vector<std::string>& output_names, std::shared_ptr<LaneGroup> lanes,
                                    std::shared_ptr<Meters> meters, py::object as_failure) {
  const batching::Limits limits{max_batch_rows, max_batch_bytes, max_waiting_rows, max_waiting_bytes,
                                max_delay_seconds};
  return PythonBatcher::open(limits, is_batchable, input_names, output_names, std::move(lanes), std::move(meters),
                             std::move(as_failure));
}

void set_input_types(PythonBatcher& batcher, std::size_t lane, const std::vector<std::optional<std::string>>& names) {
  std::vector<std::optional<Element>> elements;
  for (const std::optional<std::string>& name : names) {
    elements.push_back(name ? element_named(*name) : std::nullopt);
  }
  batcher.core()->set_feed_elements(lane, std::move(elements));
}

void set_program(PythonBatcher& batcher, std::size_t lane, std::shared_ptr<batching::Program> program,
                 std::shared_ptr<gate::Gate> gate) {
  if (program != nullptr && gate != nullptr) {
    program = std::make_shared<programs::Gated>(std::move(program), std::move(gate));
  }
  batcher.core()->set_program(lane, std::move(program));
}

void bind_batcher(py::module_& module) {
  py::class_<PythonBatcher, std::shared_ptr<PythonBatcher>>(module, "Batcher")
      .def(py::init(&open), py::kw_only(), py::arg("max_batch_rows"), py::arg("max_batch_bytes"),
           py::arg("max_waiting_rows"), py::arg("max_waiting_bytes"), py::arg("max_delay_seconds"),
           py::arg("is_batchable"), py::arg("input_names"), py::arg("output_names"), py::arg("lanes"),
           py::arg("meters"), py::arg("as_failure"))
      .def("submit", &PythonBatcher::submit, py::arg("inputs"), py::arg("nbytes"), py::arg("priority"),
           py::arg("deadline"), py::arg("future"), py::arg("mailbox"))
      .def("leave", &PythonBatcher::leave, py::arg("ticket"))
      .def("expire", [](PythonBatcher& batcher, Ticket& ticket) { batcher.core()->expire(ticket); }, py::arg("ticket"))
      .def("settle", &PythonBatcher::settle, py::arg("batch"), py::arg("outputs"), py::arg("compute_seconds"),
           py::arg("variant") = 0)
      .def("settle_and_take", &PythonBatcher::settle_and_take, py::arg("batch"), py::arg("outputs"),
           py::arg("compute_seconds"), py::arg("variant") = 0, py::arg("timeout_seconds") = py::none())
      .def("fail",
           [](PythonBatcher& batcher, PythonBatch& batch, const py::object& problem) {
             batch.inputs = py::dict();
             batcher.fail(std::move(batch.core), problem);
           },
           py::arg("batch"), py::arg("problem"))
      .def("set_input_types", &set_input_types, py::arg("lane"), py::arg("types"))
      .def("set_program", &set_program, py::arg("lane"), py::arg("program"), py::arg("gate") = nullptr)
      .def("run_alone", [](PythonBatcher& batcher) { batcher.core()->run_alone(); })
      .def("drain", [](PythonBatcher& batcher) { batcher.core()->drain(); })
      .def("close", &PythonBatcher::close, py::arg("why"), py::arg("outcome"), py::arg("abandon") = false)
      .def("when_idle", &PythonBatcher::when_idle, py::arg("future"), py::arg("mailbox"))
      .def_property_readonly("calls_in_flight",
                             [](const PythonBatcher& batcher) { return batcher.core()->calls_in_flight(); })
      .def_property_readonly("waiting_rows",
                             [](const PythonBatcher& batcher) { return batcher.core()->waiting_rows(); });
}

}  // namespace

void bind_batching(py::module_& module) {
  bind_calls(module);
  bind_meters(module);
  bind_lanes(module);
  bind_batcher(module);
}

}  // namespace headrace::bindings
