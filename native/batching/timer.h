// The one thread that answers calls at their deadlines while every lane is busy.
//
// It sleeps until somebody needs it, and is started by the first who does: a lone caller, whose call a lane takes at
// once, never comes here.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

namespace headrace::batching {

class LaneGroup;

class Timer {
 public:
  // The one that all groups share; it ends with the last of them.
  static std::shared_ptr<Timer> shared();

  Timer();
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Calls the group's `expire_due` at this time (steady seconds) or earlier; an earlier call replaces a later one.
  void call(const std::shared_ptr<LaneGroup>& group, double at);

 private:
  struct Appointment {
    std::weak_ptr<LaneGroup> group;
    double at;
  };
  // Shared with the thread, which may outlive the timer for a moment.
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<LaneGroup*, Appointment> appointments;
    double wakes_at = 0;
    bool is_over = false;
  };

  static void run(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace headrace::batching
