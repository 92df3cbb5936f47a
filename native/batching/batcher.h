// Groups the waiting calls of one model version into batches and gives each caller its own rows.
//
// - Every admitted call ends exactly once.  One whose caller has gone is left out, or, when it runs already, computed
//   for nobody; its neighbours notice nothing.
// - A free lane never waits for company, unless a delay was asked for.
// - Higher priority goes first, then the earlier deadline, then earlier arrival; nobody is overtaken by who comes more
//   than ten seconds later with the same priority.
// - A call is answered at its deadline, even while every lane is busy.  One that cannot be in time by what runs have
//   taken is refused when it comes, or answered before its turn; but a mere prediction never leaves a lane idle.
// - A batch takes no more rows than its most urgent call can wait for.
// - A call with more rows or bytes than a batch may have is computed in slices.  A single row that is too large, and any
//   call of a model that takes no rows, runs alone.
// - A batch that fails is run again one call at a time, so that only the guilty one fails.
//
// Knows no Python and no gRPC.  Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "batching/assembly.h"
#include "batching/batch.h"
#include "batching/call.h"
#include "batching/lane_group.h"
#include "batching/limits.h"
#include "batching/meters.h"
#include "batching/program.h"

namespace headrace::batching {

// How a call left.
enum class Departure {
  kNeverRan,  // it waited; nothing reads its inputs any more
  kRunning,   // some of it has begun to run; its inputs are read until the batch is over
  kTooLate,   // it has ended, or ends just now: `answered` or `refused` was or will be called
};

class Batcher : public std::enable_shared_from_this<Batcher> {
 public:
  // Calls of this batcher are served by the lanes of `lanes`.  Whoever opens one closes it.
  static std::shared_ptr<Batcher> open(const Limits& limits, bool is_batchable, std::shared_ptr<LaneGroup> lanes,
                                       std::shared_ptr<Meters> meters);
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Admits a call whose inputs fit the signature, or says why not; then nothing of it is ever called.  A refusal of
  // kClosed means that the version is leaving.
  std::optional<Refusal> submit(std::shared_ptr<Call> call);

  // The caller of an admitted call has gone.  Harmless when it has ended.
  Departure leave(Call& call);

  // Answers a call that still waits with kExpired, whatever the time.
  void expire(Call& call);

  // Gives every call of a batch its rows.  False, and nothing has happened, when an output does not have exactly one row
  // for each row of the batch: then the batch has to fail.  Outputs are read until this returns.  `variant` says which
  // of the model's programs ran.
  bool settle(std::unique_ptr<Batch>& batch, const std::vector<Output>& outputs, double compute_seconds, int variant = 0);

  // The network has an answer, so long after the model's end: so much earlier than its deadline a call must be computed.
  void sent(double seconds);

  // Gives up on a batch.  Its calls run again, each alone; one that was alone is refused with `error`, and `outcome`
  // is what is counted.
  void fail(std::unique_ptr<Batch> batch, std::shared_ptr<const void> error, const std::string& outcome);

  // Never puts two calls together, nor slices one.  Only before the first call.
  void run_alone();

  // What calls are refused with when there was no memory for their batch, or a lane has dropped it, and what is counted
  // then.  Before the first call.
  void set_loss(std::shared_ptr<const void> error, std::string outcome);

  // What a lane's program takes for each input, where that is not what callers send.  Only elements that
  // `is_convertible` allows are converted.  On the lane's own thread.
  void set_feed_elements(std::size_t lane, std::vector<std::optional<Element>> elements);

  // What runs this model's batches in `LaneGroup::serve`; null: whoever asks for them.  On the lane's own thread.
  void set_program(std::size_t lane, std::shared_ptr<Program> program);

  // From now on nobody waits for company.  Calls are still admitted.
  void drain();

  // Refuses everything that waits with kClosed, this error and this outcome, and all that come.  What runs may still
  // end well, unless it is abandoned: then it is refused with kError; its lane will not come back.
  void close(std::shared_ptr<const void> error, std::string outcome, bool abandon = false);

  // Calls `act` once, when no admitted call is without an answer: at once if that is so now.  With no lock held.
  void when_idle(std::function<void()> act);

  std::int64_t calls_in_flight() const;
  // Rows that wait for their first run.
  std::int64_t waiting_rows() const;
  bool is_batchable() const;
  const Limits& limits() const { return limits_; }
  // What the binding has put around it.
  std::weak_ptr<void> face;

  LaneGroup& lanes() const { return *lanes_; }
  Meters& meters() const { return *meters_; }
  const std::shared_ptr<Meters>& shared_meters() const { return meters_; }

 private:
  friend class LaneGroup;
  friend struct Batch;
  struct State;

  Batcher(const Limits& limits, bool is_batchable, std::shared_ptr<LaneGroup> lanes, std::shared_ptr<Meters> meters);

  // With no lock held: fills the batch's feeds; or there was no memory, and its calls have been seen to.
  bool assemble(std::unique_ptr<Batch>& batch);
  void give_up(Batch& batch, std::shared_ptr<const void> error, const std::string& outcome);

  const Limits limits_;
  const std::shared_ptr<LaneGroup> lanes_;
  const std::shared_ptr<Meters> meters_;
  std::vector<std::unique_ptr<Assembly>> assemblies_;  // one for each lane
  std::vector<std::shared_ptr<Program>> programs_;     // of each lane
  std::shared_ptr<const void> loss_;
  std::string loss_outcome_;
  const std::unique_ptr<State> state_;  // guarded by the lock of the group
};

}  // namespace headrace::batching
