// The batcher's face in Python, and what the other doors need of it.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "batching/batcher.h"
#include "bindings/ticket.h"

namespace headrace::bindings {

// The error of a refusal of kError, as an exception; None where there is none.  With the GIL held.
pybind11::object python_error(const batching::Refusal& refusal);

class PythonBatch;

// A batcher, with what only Python needs of it.  All of it with the GIL held, which is let go of where it says so.
class PythonBatcher : public std::enable_shared_from_this<PythonBatcher> {
 public:
  // `output_names`: the order of the outputs; empty when it is that of what the model returns.  `as_failure` makes an
  // error of ours, with a `reason`, of whatever a model raised, or of a sentence.
  static std::shared_ptr<PythonBatcher> open(const batching::Limits& limits, bool is_batchable,
                                             const std::vector<std::string>& input_names,
                                             const std::vector<std::string>& output_names,
                                             std::shared_ptr<batching::LaneGroup> lanes,
                                             std::shared_ptr<batching::Meters> meters, pybind11::object as_failure);
  ~PythonBatcher();

  const std::shared_ptr<batching::Batcher>& core() const { return core_; }
  const std::vector<pybind11::object>& input_keys() const { return input_keys_; }

  // A Ticket, or the Refusal.
  pybind11::object submit(const pybind11::object& inputs, std::size_t nbytes, int priority,
                          std::optional<double> deadline, pybind11::object future, std::shared_ptr<Mailbox> mailbox);
  // Whether it never ran.
  bool leave(Ticket& ticket);
  // Without the GIL where rows are handed out.
  void settle(PythonBatch& batch, const pybind11::object& outputs, double compute_seconds, int variant);
  // Settles, and takes what the same lane runs next, without the GIL all the while.
  pybind11::object settle_and_take(PythonBatch& batch, const pybind11::object& outputs, double compute_seconds,
                                   int variant, std::optional<double> timeout_seconds);
  void fail(std::unique_ptr<batching::Batch> batch, const pybind11::object& problem);
  // Fails a batch because these outputs do not have one row for each of its rows.
  void fail_for_rows(std::unique_ptr<batching::Batch> batch, const std::vector<batching::Output>& outputs);
  void close(pybind11::object why, const std::string& outcome, bool abandon);
  // Puts a notice for this future into the mailbox when no admitted call is without an answer.
  void when_idle(pybind11::object future, std::shared_ptr<Mailbox> mailbox);

 private:
  PythonBatcher(const std::vector<std::string>& input_names, const std::vector<std::string>& output_names,
                pybind11::object as_failure);

  std::vector<batching::Output> outputs_of(const pybind11::object& outputs) const;
  // Fails the batch and returns false when they cannot be read.
  bool read(PythonBatch& batch, const pybind11::object& outputs, std::vector<batching::Output>& result);
  std::vector<pybind11::object> input_keys_;
  std::vector<pybind11::object> output_keys_;
  std::shared_ptr<const std::vector<std::string>> output_names_;
  pybind11::object as_failure_;
  std::shared_ptr<batching::Batcher> core_;
};

// A batch with its inputs as arrays.
class PythonBatch {
 public:
  // Throws, and leaves the batch alone, when rows of objects cannot be put together.
  PythonBatch(std::shared_ptr<PythonBatcher> of, std::unique_ptr<batching::Batch>& batch);

  std::shared_ptr<PythonBatcher> batcher;
  std::unique_ptr<batching::Batch> core;  // null when it is over
  pybind11::dict inputs;
  std::int64_t rows = 0;
  std::size_t calls = 0;
  std::size_t lane = 0;
  batching::Reason reason = batching::Reason::kIdle;
  double assemble_seconds = 0;
  // What its model's own program has raised; None when nothing has run it yet.
  pybind11::object failure = pybind11::none();
};

// Waits, and runs the batches of models that have a program of their own, without the GIL, as `LaneGroup::serve` does;
// None when there is nothing to run.
pybind11::object take(batching::LaneGroup& lanes, std::size_t lane, std::optional<double> timeout_seconds);

}  // namespace headrace::bindings
