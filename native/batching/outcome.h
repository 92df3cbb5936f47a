// How a call ends.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace headrace::batching {

// Where the time of one call went.  A call that ran in slices counts all of them.
struct Timing {
  // From admission until its (first) batch began to be assembled.
  double queue_seconds = 0;
  double assemble_seconds = 0;
  // Running the model on the whole batch.
  double compute_seconds = 0;
  // When the (last) run ended, on the batcher's clock.
  double finished_at = 0;
  // Of the (largest) batch, other callers' rows included.
  std::int64_t batch_rows = 0;
  std::int64_t batch_calls = 0;
  // Which of the model's programs ran, as who ran it said; of the last slice.
  int variant = 0;
};

// Why a call gets no answer.
struct Refusal {
  enum class Kind {
    kNoPermit,  // too much waits; from `submit` only
    kLate,      // it would miss its deadline in the queue; from `submit` only
    kExpired,   // its deadline came before its turn
    kClosed,    // the model is leaving: ask for it by name again
    kError,     // the model failed, or its lane died
  };
  Kind kind = Kind::kClosed;
  // A reason that completes the sentence of NoPermit; empty when too many rows wait.
  std::string why;
  double queue_seconds = 0;
  std::int64_t waiting_rows = 0;
  std::int64_t limit = 0;
  double retry_after_seconds = 0;
  // What is counted: the reason of the error as the contract names it.  One of kClosed has not been counted: the call
  // may still be answered by somebody else.
  std::string outcome;
  // Of kError and kClosed: what whoever ran the model or closed the batcher gave as the reason, opaque here.
  std::shared_ptr<const void> error;
};

}  // namespace headrace::batching
