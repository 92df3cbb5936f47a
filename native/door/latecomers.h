// Calls that come while the door closes.
//
// gRPC drops what begins while a server shuts down, without a reason that anybody could act on, until each connection has
// heard that it shall not be used any more.  A caller who waits for an answer begins nothing: so those who come shortly
// before are kept waiting, and are sent away only when their connections have heard.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <unordered_set>

#include "door/admission.h"
#include "door/served.h"
#include "plane/status.h"

namespace headrace::door {

class Latecomers {
 public:
  // Both outlive it.  `told` is what everybody is sent away with.
  Latecomers(Admission& admission, const plane::Status& told) : admission_(admission), told_(told) {}

  // From now on calls belong here.
  void expect();
  bool are_expected() const { return stage_.load(std::memory_order_relaxed) != Stage::kNone; }
  // On the queue's thread.
  void receive(Served& call);
  // Waits until nobody has come for a moment, at most `seconds`.
  void wait_until_quiet(std::chrono::duration<double> seconds);
  // Sends away those who have been kept, after so many seconds, and from then on everybody at once.
  void send_away_after(std::chrono::duration<double> seconds);
  // Lets nobody wait any more.
  void hurry();
  bool is_hurried() const;

 private:
  class Kept;
  enum class Stage { kNone, kKeeping, kSendingAway };

  // Whether it was here; then it is the asker's.
  bool take(Kept& kept);

  Admission& admission_;
  const plane::Status& told_;
  std::atomic<Stage> stage_{Stage::kNone};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool is_hurried_ = false;
  std::chrono::steady_clock::time_point last_came_at_;
  std::unordered_set<Kept*> kept_;
};

}  // namespace headrace::door
