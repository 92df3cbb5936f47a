// What a batcher knows, and what it does while the lock of its lane group is held.  Nothing here calls a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "batching/batcher.h"
#include "batching/endings.h"
#include "batching/forecast.h"
#include "batching/pace.h"
#include "batching/waiting_room.h"
#include "batching/way.h"

namespace headrace::batching {

// A call is ordered as if it were due no later than this after it came: nobody starves behind those with deadlines.
inline constexpr double kPatienceSeconds = 10;

// What could be run next, and why just now.
struct Candidate {
  Queue* queue = nullptr;  // null: a part that runs again
  Reason reason = Reason::kIdle;
};

struct Batcher::State {
  State(const Limits& batch_limits, bool takes_rows, std::size_t lanes)
      : limits(batch_limits), num_lanes(lanes), is_batchable(takes_rows) {}

  const Limits& limits;
  const std::size_t num_lanes;
  bool is_batchable;
  WaitingRoom waiting;
  std::deque<Part*> again;
  std::unordered_set<Batch*> running;
  Pace pace;
  Forecast forecast;
  Group scratch;  // the group of the call that is being admitted
  std::uint64_t num_arrivals = 0;
  std::int64_t num_in_flight = 0;
  bool is_draining = false;
  bool is_closed = false;
  std::shared_ptr<const void> closed_by;
  std::string closed_outcome;
  std::vector<std::function<void()>> idle_acts;
  Way way_back;  // not guarded
  // What it has cost its lanes so far, in the seconds of the group's virtual time.
  double virtual_time = 0;

  // Admission.  Why a call may not wait, if it may not.
  std::optional<Refusal> admit(Call& call, double now);
  void enqueue(std::shared_ptr<Call> call, double now);

  // Dispatch.  What can be run at `now`; else `wakes_at` becomes the time to look again, if that is earlier.
  std::optional<Candidate> candidate(double now, double& wakes_at);
  // Null when all that could have been run has ended instead.
  std::unique_ptr<Batch> fill(const Candidate& candidate, double now, Endings& endings);

  // Endings.  Computes no more of a call: it is over.
  void withdraw(Call& call);
  void refuse(Call& call, Refusal refusal, double now, Endings& endings);
  void expire(Call& call, double now, Endings& endings);
  void expire_due(double now, Endings& endings);
  // A part of a batch is done, with outputs.
  void finish(Part& part, bool was_taken, const Batch& batch, const Timing& timing, double now, Endings& endings);
  // Whom to tell, now that nothing is in flight, if that is so.
  void note_idle(Endings& endings);

  bool has_work() const { return !again.empty() || !waiting.is_empty(); }

 private:
  struct Filling;

  // When a call is done that comes now, by what is known.
  double expected_at(const Call& call, double now);
  // A call with an expectation is done, or would be.
  void compare(const Call& call, double done_at);
  // A deadline is the caller's: what his message has lost on its way here is not seen, and taken to be as much as the
  // answer loses on its way back.
  double way_seconds() const { return 2 * way_back.seconds(); }
  // When an answer must have been computed to be in time.
  double due_at(const Call& call) const { return call.deadline - way_seconds(); }
  std::int64_t slice_rows(const Call& call, std::int64_t rows) const;
  void closing(const Queue& queue, double now, Reason& reason, double& closes_at) const;
  // How many of the rows that wait a free lane takes, where nobody waits for company.
  std::int64_t share_rows(const Queue& queue) const;
  bool fits(std::int64_t rows, std::size_t nbytes) const;
  std::unique_ptr<Batch> run_again(double now);
  std::vector<double> free_at_;  // scratch

  void fill_from(Queue& queue, double now, Filling& filling, Endings& endings);
};

}  // namespace headrace::batching
