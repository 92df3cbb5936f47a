// The lanes of one device, or of one model, and the batchers that they serve.
//
// A lane is a thread that asks for the next batch; which batcher it comes from is decided by what each model has cost
// so far, so that a slow model cannot starve a fast one.  One lock guards the group and all its batchers; it is held
// for moments only, and never while anything of a call's is called or copied.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "batching/batch.h"
#include "batching/clock.h"
#include "batching/source.h"
#include "batching/timer.h"

namespace headrace::batching {

class Batcher;
class Endings;

class LaneGroup final : public Due, public std::enable_shared_from_this<LaneGroup> {
 public:
  explicit LaneGroup(std::size_t num_lanes, Clock clock = {});
  ~LaneGroup() override;
  LaneGroup(const LaneGroup&) = delete;
  LaneGroup& operator=(const LaneGroup&) = delete;

  std::size_t num_lanes() const { return lanes_.size(); }

  // Waits for work, at most so many seconds, and returns the next batch, assembled.  Nothing when the time has passed,
  // when the group is closed, or when somebody rang for this lane.  The batch goes back through `Batcher::settle` or
  // `Batcher::fail`.
  std::unique_ptr<Batch> take(std::size_t lane, double timeout_seconds = kNever);

  // Gives a batch back through `Batcher::settle`, which it returns.
  using Settle = std::function<bool(std::unique_ptr<Batch>& batch, const std::vector<Output>& outputs,
                                    double compute_seconds, int variant)>;

  // The same, but runs the batches of models that have a program here itself.  It returns one of another model, one that
  // the program cannot read (objects, or elements that do not lie together), or one that it has failed with.
  std::unique_ptr<Batch> serve(std::size_t lane, double timeout_seconds, const Settle& settle);

  // Lets one `take` of this lane return without a batch, the next one if none is waiting now.
  void ring(std::size_t lane);

  // Sends the lanes home.  Batchers are closed by whoever owns them.
  void close();
  bool is_closed() const;

  double now() const { return clock_ ? clock_() : steady_seconds(); }

 private:
  friend class Batcher;

  struct Lane {
    std::condition_variable bell;
    bool is_waiting = false;  // and may be woken
    bool is_rung = false;
    double wakes_at = kNever;
    // Where its last call came from, which it may attend when it has nothing else to do.
    std::weak_ptr<Source> source;
    std::shared_ptr<Source> attended;  // null: it sleeps, or works
    std::shared_ptr<Source> left;      // what it has just attended
    std::atomic<bool> is_called{false};  // while it attends: it shall look for work
  };

  // How a lane is woken, once no lock is held.
  struct Wake {
    Lane* lane = nullptr;  // null: none is
    std::shared_ptr<Source> attended;

    explicit operator bool() const { return lane != nullptr; }
    void operator()() const {
      if (attended != nullptr) return attended->ring();
      if (lane != nullptr) lane->bell.notify_one();
    }
  };

  void add(Batcher& batcher);
  void remove(Batcher& batcher);

  // All of these with the lock held.
  double now_holding(std::unique_lock<std::mutex>& lock) const;
  std::unique_ptr<Batch> next(std::size_t lane, double now, double& wakes_at, std::shared_ptr<Batcher>& from,
                              Endings& endings);
  void wait(std::unique_lock<std::mutex>& lock, std::size_t lane, double now, double wakes_at);
  // Instead of sleeping; false when there is nothing to attend.
  bool attend(std::unique_lock<std::mutex>& lock, Lane& lane, double wakes_at);
  // Work has come, or is left: wakes the one lane that shall look at it; nobody when none is needed, or free.
  Wake lane_to_wake(double now);
  // The same for a call that has just come; whoever brought it may be relieved when it is run soon.
  Wake lane_to_wake_for(const Batcher& batcher, double now);
  static Wake wake_of(Lane& lane);
  // Lets the timer come when the first deadline does, unless a lane is free to see to it.
  void watch_deadlines();
  double earliest_deadline() const;

  // Answers what is due.
  void expire_due() noexcept override;

  const Clock clock_;
  mutable std::mutex mutex_;
  std::deque<Lane> lanes_;
  std::vector<std::size_t> waiting_lanes_;  // the one that came last is woken first: its memory is warm
  std::vector<Batcher*> batchers_;
  bool is_closed_ = false;
  double virtual_time_ = 0;
  double watched_until_ = kNever;  // when the timer comes
  std::shared_ptr<Timer> timer_;
};

}  // namespace headrace::batching
