#include "door/queue.h"

#include <grpc/support/time.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "batching/clock.h"

namespace headrace::door {
namespace {

using batching::steady_seconds;

// A lane that has waited so long in vain goes to sleep, and calls that come less often are not waited for by lanes.
constexpr double kIdleSeconds = 0.005;
// The thread takes a seat that is free for so long.
constexpr std::chrono::milliseconds kMostFree{1};
// A lane watches for so long before it goes to sleep; not for the next moment when it was in vain, and not for long when
// somebody else wants the processor: then a look, which takes a microsecond or two, takes that long.
constexpr double kWatchSeconds = 0.00015, kInVainSeconds = 0.01;
constexpr double kTakenSeconds = 0.00005, kBusySeconds = 0.1;
// Whether nothing more has come is known when gRPC has found nothing so often: what was begun outside of its polling
// and was done at once lets the next look return without any.
constexpr int kLastLooks = 2;
// A single caller waits for these looks, and they find nothing.  So they are left out once so many requests in a row have
// come alone: when gRPC had found nothing so often since the one before, and with nothing behind them.
constexpr int kCompany = 16;
// A lane that is called looks at no more than so much before it goes.
constexpr int kMostEvents = 256;

}  // namespace

Queue::Queue(std::unique_ptr<grpc::ServerCompletionQueue> queue) : queue_(std::move(queue)) {}

Queue::~Queue() {
  if (thread_.joinable()) close();
}

void Queue::start() {
  thread_ = std::thread([this] { run(); });
}

void Queue::close() {
  if (!thread_.joinable()) return;
  {
    // Nothing may be begun on a queue that was shut down.
    std::unique_lock lock(mutex_);
    is_closed_ = true;
    died_.wait(lock, [this] { return num_living_ == 0; });
  }
  queue_->Shutdown();
  thread_.join();
}

void Queue::add() {
  const std::lock_guard lock(mutex_);
  ++num_living_;
}

void Queue::remove() {
  const std::lock_guard lock(mutex_);
  if (--num_living_ == 0) died_.notify_all();
}

void Queue::run() {
  here() = weak_from_this();
  thread_id_ = std::this_thread::get_id();
  while (true) {
    switch (see_to_one(is_offered_ ? 0 : batching::kNever)) {
      case grpc::CompletionQueue::SHUTDOWN: return;
      case grpc::CompletionQueue::GOT_EVENT: break;
      case grpc::CompletionQueue::TIMEOUT:
        is_offered_ = false;
        stand_by();
    }
  }
}

Queue::Seen Queue::see_to_one(double seconds) {
  gpr_timespec deadline = gpr_inf_past(GPR_CLOCK_MONOTONIC);
  if (seconds == batching::kNever) {
    deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
  } else if (seconds > 0) {
    const auto nanos = static_cast<std::int64_t>(seconds * 1e9);
    deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(nanos, GPR_TIMESPAN));
  }
  void* event = nullptr;
  bool ok = false;
  const Seen status = queue_->AsyncNext(&event, &ok, deadline);
  if (status == grpc::CompletionQueue::GOT_EVENT) {
    static_cast<Event*>(event)->happened(ok);
  } else {
    ++num_empty_looks_;
  }
  return status;
}

void Queue::has_brought_request() noexcept {
  if (num_empty_looks_ < kLastLooks) company_ = kCompany;
  num_empty_looks_ = 0;
}

Queue::Seen Queue::watch_for_one(const std::atomic<bool>& is_called) {
  double looked_at = steady_seconds();
  if (looked_at < watches_from_) return Seen::TIMEOUT;
  const double until = looked_at + kWatchSeconds;
  while (!is_called.load(std::memory_order_relaxed)) {
    const Seen seen = see_to_one(0);
    if (seen != Seen::TIMEOUT) return seen;
    const double now = steady_seconds();
    if (now - looked_at > kTakenSeconds) {
      watches_from_ = now + kBusySeconds;
      break;
    }
    if (now >= until) {
      watches_from_ = now + kInVainSeconds;
      break;
    }
    looked_at = now;
  }
  return Seen::TIMEOUT;
}

void Queue::stand_by() {
  std::unique_lock lock(mutex_);
  seat_ = Seat::kFree;
  while (seat_ != Seat::kThread) {
    const std::uint64_t seen = num_moves_;
    seat_changed_.wait_for(lock, kMostFree);
    if (seat_ == Seat::kFree && num_moves_ == seen) seat_ = Seat::kThread;
  }
}

void Queue::offer() noexcept {
  if (std::this_thread::get_id() != thread_id_) return;
  const double now = steady_seconds();
  is_offered_ = now - offered_at_ < kIdleSeconds;
  offered_at_ = now;
}

bool Queue::attend(const std::atomic<bool>& is_called, double until) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (seat_ != Seat::kFree) return false;
    seat_ = Seat::kLane;
    ++num_moves_;
  }
  here() = weak_from_this();
  Seat next = Seat::kFree;
  int num_empty = 0;  // looks in a row
  for (int num_left = kMostEvents; num_left > 0;) {
    if (watch_for_one(is_called) == Seen::GOT_EVENT) {
      num_empty = 0;
      continue;
    }
    // Once it is called, only what has come already: calls that came together are run together.
    const bool is_leaving = is_called.load(std::memory_order_relaxed);
    if (is_leaving && (company_ == 0 || num_empty == kLastLooks)) break;
    const bool is_sleeping = !is_leaving && num_empty == kLastLooks;
    const double seconds = is_sleeping ? std::clamp(until - steady_seconds(), 0.0, kIdleSeconds) : 0;
    if (see_to_one(seconds) == Seen::GOT_EVENT) {
      num_empty = 0;
      if (is_leaving) {
        company_ = kCompany;
        --num_left;
      }
    } else if (is_sleeping) {
      next = Seat::kThread;
      break;
    } else {
      ++num_empty;
    }
  }
  if (company_ > 0) --company_;
  here().reset();
  give_seat_to(next);
  return true;
}

void Queue::leave() noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (seat_ != Seat::kFree) return;
    seat_ = Seat::kThread;
  }
  seat_changed_.notify_one();
}

void Queue::give_seat_to(Seat seat) {
  {
    const std::lock_guard lock(mutex_);
    seat_ = seat;
    ++num_moves_;
  }
  if (seat == Seat::kThread) seat_changed_.notify_one();
}

void Queue::ring() noexcept {
  if (here().lock().get() == this) return;
  const std::lock_guard lock(mutex_);
  if (seat_ != Seat::kLane || is_ringing_ || is_closed_) return;
  is_ringing_ = true;
  ++num_living_;
  // A moment ago: gRPC rounds up to milliseconds.
  const gpr_timespec at_once = gpr_time_sub(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(10, GPR_TIMESPAN));
  bell_.Set(queue_.get(), at_once, static_cast<Event*>(&rung_));
}

void Queue::has_rung(bool /*ok*/) {
  {
    const std::lock_guard lock(mutex_);
    is_ringing_ = false;
  }
  remove();
}

}  // namespace headrace::door
