#include "bindings/batching.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/objects.h"
#include "bindings/parts.h"
#include "bindings/programs.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

using batching::Batch;
using batching::Feed;
using batching::LaneGroup;
using batching::Output;
using batching::Part;
using batching::Refusal;

py::array array_over(const Feed& feed, const py::handle& base) {
  return bindings::array_over(*feed.element, feed.shape, feed.data, base);
}

// What a part of a call from Python has of one of its inputs.
py::object rows_of(const Part& part, std::size_t input) {
  const auto* const ticket = dynamic_cast<const Ticket*>(part.call);
  if (ticket == nullptr) throw py::type_error("Only calls from Python have inputs of objects.");
  const py::object& array = ticket->array(input);
  if (part.is_whole) return array;
  return array[py::slice(static_cast<py::ssize_t>(part.first), static_cast<py::ssize_t>(part.first + part.rows), 1)];
}

py::object feed_of(const Batch& batch, std::size_t input) {
  const Feed& feed = batch.feeds[input];
  if (feed.buffer != nullptr) {
    if (feed.buffer->face == nullptr) {
      // It keeps the memory, not the buffer: nobody owns himself.
      feed.buffer->face = std::const_pointer_cast<void>(hold(keeper_of(feed.buffer->memory())));
    }
    return array_over(feed, held(feed.buffer->face));
  }
  if (batch.parts.size() == 1 && dynamic_cast<const Ticket*>(batch.parts[0]->call) != nullptr) {
    return rows_of(*batch.parts[0], input);
  }
  if (feed.element) {
    py::array array = array_over(feed, keeper_of(batch.calls[0]));
    array.attr("setflags")(py::arg("write") = false);
    return array;
  }
  py::list arrays;
  for (const Part* part : batch.parts) arrays.append(rows_of(*part, input));
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> concatenate;
  return concatenate.call_once_and_store_result([] { return py::module_::import("numpy").attr("concatenate"); })
      .get_stored()(arrays);
}

// None when there is nothing to do for it any more: its rows could not be put together, or its model's program has run it
// and given other rows; then its calls have been seen to.
py::object face_of(std::unique_ptr<Batch>& batch) {
  const auto batcher = std::static_pointer_cast<PythonBatcher>(batch->batcher->face.lock());
  if (batcher == nullptr) throw std::runtime_error("The batcher has gone.");
  if (!batch->outputs.empty()) {
    const std::vector<Output> outputs = std::move(batch->outputs);
    batcher->fail_for_rows(std::move(batch), outputs);
    return py::none();
  }
  try {
    return py::cast(std::make_shared<PythonBatch>(batcher, batch));
  } catch (py::error_already_set& error) {
    batcher->fail(std::move(batch), error.value());
  } catch (const py::builtin_exception& error) {
    batcher->fail(std::move(batch), py::str(error.what()));
  }
  return py::none();
}

// Without the GIL: the batches of models with a program of their own are run meanwhile.
std::unique_ptr<Batch> serve(LaneGroup& lanes, std::size_t lane, std::optional<double> timeout_seconds) {
  const auto settle = [](std::unique_ptr<Batch>& batch, const std::vector<Output>& outputs, double compute_seconds,
                         int variant) {
    const Mailbox::Bundle bundle;
    return batch->batcher->settle(batch, outputs, compute_seconds, variant);
  };
  return lanes.serve(lane, timeout_seconds.value_or(batching::kNever), settle);
}

}  // namespace

py::object python_error(const Refusal& refusal) {
  py::object error = held(refusal.error);
  // A batcher is closed with what makes errors, so that each caller gets one of his own.
  return PyCallable_Check(error.ptr()) != 0 ? error() : error;
}

// Batches.

PythonBatch::PythonBatch(std::shared_ptr<PythonBatcher> of, std::unique_ptr<Batch>& batch)
    : batcher(std::move(of)),
      rows(batch->rows),
      calls(batch->parts.size()),
      lane(batch->lane),
      reason(batch->reason),
      assemble_seconds(batch->assemble_seconds) {
  const std::vector<py::object>& keys = batcher->input_keys();
  for (std::size_t i = 0; i < batch->feeds.size(); ++i) inputs[keys[i]] = feed_of(*batch, i);
  if (batch->failure != nullptr) failure = exception_of(batch->failure);
  core = std::move(batch);
}

// Batchers.

PythonBatcher::PythonBatcher(const std::vector<std::string>& input_names, const std::vector<std::string>& output_names,
                             py::object as_failure)
    : as_failure_(std::move(as_failure)) {
  for (const std::string& name : input_names) input_keys_.emplace_back(py::str(name));
  for (const std::string& name : output_names) output_keys_.emplace_back(py::str(name));
  output_names_ = std::make_shared<const std::vector<std::string>>(output_names);
}

std::shared_ptr<PythonBatcher> PythonBatcher::open(const batching::Limits& limits, bool is_batchable,
                                                   const std::vector<std::string>& input_names,
                                                   const std::vector<std::string>& output_names,
                                                   std::shared_ptr<LaneGroup> lanes,
                                                   std::shared_ptr<batching::Meters> meters, py::object as_failure) {
  std::shared_ptr<PythonBatcher> batcher(new PythonBatcher(input_names, output_names, std::move(as_failure)));
  batcher->core_ = batching::Batcher::open(limits, is_batchable, std::move(lanes), std::move(meters));
  batcher->core_->face = batcher;
  const py::object error = batcher->as_failure_(py::str("there was no memory for its batch, or the batch was lost"));
  batcher->core_->set_loss(hold(error), error.attr("reason").cast<std::string>());
  return batcher;
}

PythonBatcher::~PythonBatcher() {
  let_go(as_failure_);
  for (py::object& key : input_keys_) let_go(key);
  for (py::object& key : output_keys_) let_go(key);
}

py::object PythonBatcher::submit(const py::object& inputs, std::size_t nbytes, int priority,
                                 std::optional<double> deadline, py::object future, std::shared_ptr<Mailbox> mailbox) {
  bury_the_dead();
  auto ticket = std::make_shared<Ticket>(std::move(future), std::move(mailbox), core_->shared_meters(), output_names_);
  for (const py::object& key : input_keys_) {
    py::object array = inputs[key];
    if (!py::isinstance<py::array>(array)) throw py::type_error("Inputs must be NumPy arrays.");
    ticket->add_input(std::move(array));
  }
  ticket->nbytes = nbytes;
  ticket->priority = priority;
  ticket->deadline = deadline.value_or(batching::kNever);
  std::optional<Refusal> refusal = core_->submit(ticket);
  if (!refusal) return py::cast(std::move(ticket));
  if (refusal->kind == Refusal::Kind::kClosed) core_->meters().ended(refusal->outcome, 0);
  return py::cast(*std::move(refusal));
}

bool PythonBatcher::leave(Ticket& ticket) {
  const batching::Departure departure = core_->leave(ticket);
  if (departure == batching::Departure::kNeverRan) ticket.forget_inputs();
  return departure == batching::Departure::kNeverRan;
}

std::vector<Output> PythonBatcher::outputs_of(const py::object& outputs) const {
  py::dict arrays;
  if (output_keys_.empty()) {
    arrays = py::dict(outputs);
  } else {
    for (const py::object& key : output_keys_) arrays[key] = outputs[key];
  }
  std::vector<Output> result;
  result.reserve(arrays.size());
  for (auto [name, value] : arrays) {
    if (!py::isinstance<py::array>(value)) throw py::type_error("Outputs must be NumPy arrays.");
    auto array = py::reinterpret_borrow<py::array>(value);
    Output output;
    output.element = find_element(array);
    if ((array.flags() & py::array::c_style) == 0) {
      array = py::array::ensure(array, py::array::c_style);
      if (!array) throw py::error_already_set();
      arrays[name] = array;  // no new key: the dict may be changed while it is read
    }
    output.shape.assign(array.shape(), array.shape() + array.ndim());
    if (!array.dtype().attr("hasobject").cast<bool>()) {
      output.data = static_cast<const std::byte*>(array.data());
      output.size_bytes = static_cast<std::size_t>(array.nbytes());
      if (!output.shape.empty() && output.shape[0] > 0) {
        output.row_bytes = output.size_bytes / static_cast<std::size_t>(output.shape[0]);
      }
    }
    result.push_back(std::move(output));
  }
  const std::shared_ptr<const void> owner = hold(std::move(arrays));
  for (Output& output : result) output.owner = owner;
  return result;
}

bool PythonBatcher::read(PythonBatch& batch, const py::object& outputs, std::vector<Output>& result) {
  batch.inputs = py::dict();
  try {
    result = outputs_of(outputs);
    return true;
  } catch (py::error_already_set& error) {
    fail(std::move(batch.core), error.value());
  } catch (const py::builtin_exception& error) {
    fail(std::move(batch.core), py::str(error.what()));
  }
  return false;
}

void PythonBatcher::settle(PythonBatch& batch, const py::object& outputs, double compute_seconds, int variant) {
  std::vector<Output> native;
  if (!read(batch, outputs, native)) return;
  bool is_settled = false;
  {
    const py::gil_scoped_release release;
    const Mailbox::Bundle bundle;
    is_settled = core_->settle(batch.core, native, compute_seconds, variant);
  }
  if (!is_settled) fail_for_rows(std::move(batch.core), native);
}

py::object PythonBatcher::settle_and_take(PythonBatch& batch, const py::object& outputs, double compute_seconds,
                                          int variant, std::optional<double> timeout_seconds) {
  LaneGroup& lanes = core_->lanes();
  std::vector<Output> native;
  if (read(batch, outputs, native)) {
    std::unique_ptr<Batch> next;
    bool is_settled = false;
    {
      const py::gil_scoped_release release;
      {
        const Mailbox::Bundle bundle;
        is_settled = core_->settle(batch.core, native, compute_seconds, variant);
      }
      if (is_settled) {
        native.clear();
        next = serve(lanes, batch.lane, timeout_seconds);
      }
    }
    if (is_settled) {
      bury_the_dead();
      if (next == nullptr) return py::none();
      py::object face = face_of(next);
      if (!face.is_none()) return face;
    } else {
      fail_for_rows(std::move(batch.core), native);
    }
  }
  return take(lanes, batch.lane, timeout_seconds);
}

void PythonBatcher::fail_for_rows(std::unique_ptr<Batch> batch, const std::vector<Output>& outputs) {
  std::string problem;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::vector<std::int64_t>& shape = outputs[i].shape;
    if (!shape.empty() && shape[0] == batch->rows) continue;
    const py::object name =
        is_object(outputs[i].owner) ? py::list(held(outputs[i].owner))[i].cast<py::object>() : output_keys_.at(i);
    problem = "output " + py::repr(name).cast<std::string>() + " has shape " +
              py::repr(py::cast(shape)).cast<std::string>() + " for " + std::to_string(batch->rows) + " rows of input";
    break;
  }
  fail(std::move(batch), py::str(problem));
}

void PythonBatcher::fail(std::unique_ptr<Batch> batch, const py::object& problem) {
  const py::object error = as_failure_(problem);
  const auto outcome = error.attr("reason").cast<std::string>();
  std::shared_ptr<const void> holder = hold(error);
  const py::gil_scoped_release release;
  const Mailbox::Bundle bundle;
  core_->fail(std::move(batch), std::move(holder), outcome);
}

void PythonBatcher::close(py::object why, const std::string& outcome, bool abandon) {
  std::shared_ptr<const void> holder = hold(std::move(why));
  const py::gil_scoped_release release;
  const Mailbox::Bundle bundle;
  core_->close(std::move(holder), outcome, abandon);
}

void PythonBatcher::when_idle(py::object future, std::shared_ptr<Mailbox> mailbox) {
  auto notice = std::make_shared<Ticket>(std::move(future), std::move(mailbox), core_->shared_meters());
  core_->when_idle([notice] { notice->answered({}); });
}

py::object take(LaneGroup& lanes, std::size_t lane, std::optional<double> timeout_seconds) {
  while (true) {
    std::unique_ptr<Batch> batch;
    {
      const py::gil_scoped_release release;
      batch = serve(lanes, lane, timeout_seconds);
    }
    bury_the_dead();
    if (batch == nullptr) return py::none();
    py::object face = face_of(batch);
    if (!face.is_none()) return face;
  }
}

}  // namespace headrace::bindings
