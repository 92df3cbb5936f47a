// The one thread that keeps deadlines which nobody else can keep: of calls that wait while every lane is busy, and of
// requests in a stream that are being run.
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

// Who has deadlines to be kept.
class Due {
 public:
  virtual ~Due() = default;
  // Does what is due now.  On the timer's thread, with no lock held.
  virtual void expire_due() noexcept = 0;
};

class Timer {
 public:
  // The one that all share; it ends with the last of them.
  static std::shared_ptr<Timer> shared();

  Timer();
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Calls `expire_due` at this time (steady seconds) or earlier; an earlier call replaces a later one.
  void call(const std::shared_ptr<Due>& due, double at);
  // Not any more; for those who end before their time.
  void forget(const Due& due);

 private:
  struct Appointment {
    std::weak_ptr<Due> due;
    double at;
  };
  // Shared with the thread, which may outlive the timer for a moment.
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<const Due*, Appointment> appointments;
    double wakes_at = 0;
    bool is_over = false;
  };

  static void run(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace headrace::batching
