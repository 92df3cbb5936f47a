// What the batcher remembers of a call.  Guarded by the lock of its lane group, unless a line says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "batching/clock.h"
#include "batching/outcome.h"

namespace headrace::batching {

class Call;
struct Queue;

// Where a part is.
enum class Stage : std::uint8_t {
  kWaiting,
  kAgain,  // its batch failed; it will run alone
  kRunning,
  kOver,
};

// Smaller goes first: higher priority, then what is due earlier, then earlier arrival, then the place in its call.
struct Order {
  int priority = 0;
  double due = 0;
  std::uint64_t arrival = 0;
  std::int64_t first = 0;
  bool operator<(const Order& other) const {
    if (priority != other.priority) return priority > other.priority;
    if (due != other.due) return due < other.due;
    if (arrival != other.arrival) return arrival < other.arrival;
    return first < other.first;
  }
};

// Rows of one call that are computed at once.
struct Part {
  Call* call = nullptr;
  std::int64_t first = 0;
  std::int64_t rows = 0;
  std::size_t nbytes = 0;
  bool is_whole = true;  // its call has no other part
  Order order;
  double admitted_at = 0;
  Stage stage = Stage::kOver;

  // Its place in a queue (waiting_room.cc).
  Queue* queue = nullptr;
  Part* parent = nullptr;
  Part* left = nullptr;
  Part* right = nullptr;
  std::uint32_t weight = 0;
  // Of itself and everything below.
  std::int64_t subtree_rows = 0;
  double earliest_deadline = 0;
  double earliest_admission = 0;
};

struct Progress {
  // Keeps the call alive from its admission until its last part is over.
  std::shared_ptr<Call> keeper;
  Part part;                // of a call that fits into one batch,
  std::vector<Part> slices;  // and of one that does not
  std::int64_t rows = 0;
  std::size_t parts_left = 0;     // without outputs
  std::size_t parts_running = 0;  // in batches that lanes hold
  std::size_t parts_taken = 0;    // of those, the ones that are being taken just now
  // With what it is refused as soon as nothing of it is being taken any more.
  std::unique_ptr<Refusal> pending;
  // An answer is on its way, or the caller has gone: what remains of it is not computed.
  bool is_over = false;
  double admitted_at = 0;
  double started_at = -1;
  // When it was to be done, as far as one could tell when it came; kNever where nobody asked.
  double expected_at = kNever;
  Timing timing;
  // Held while a slice is taken; lanes may have finished two of them.
  std::mutex taking;
};

}  // namespace headrace::batching
