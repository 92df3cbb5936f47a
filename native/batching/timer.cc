#include "batching/timer.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "batching/call.h"
#include "batching/clock.h"

namespace headrace::batching {

std::shared_ptr<Timer> Timer::shared() {
  static std::mutex mutex;
  static std::weak_ptr<Timer> current;
  const std::lock_guard lock(mutex);
  std::shared_ptr<Timer> timer = current.lock();
  if (!timer) current = timer = std::make_shared<Timer>();
  return timer;
}

Timer::Timer() : state_(std::make_shared<State>()), thread_(run, state_) {}

Timer::~Timer() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->is_over = true;
  }
  state_->changed.notify_one();
  // The last of them may have ended on the timer's own thread.
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void Timer::call(const std::shared_ptr<Due>& due, double at) {
  {
    const std::lock_guard lock(state_->mutex);
    const auto [found, is_new] = state_->appointments.try_emplace(due.get(), Appointment{due, at});
    if (!is_new) {
      // Another may have had this address.
      found->second = {due, found->second.due.expired() ? at : std::min(found->second.at, at)};
    }
    if (at >= state_->wakes_at) return;
    state_->wakes_at = at;
  }
  state_->changed.notify_one();
}

void Timer::forget(const Due& due) {
  const std::lock_guard lock(state_->mutex);
  state_->appointments.erase(&due);
}

void Timer::run(const std::shared_ptr<State>& state) {
  std::vector<std::shared_ptr<Due>> due;
  std::unique_lock lock(state->mutex);
  while (!state->is_over) {
    const double now = steady_seconds();
    double next = kNever;
    for (auto i = state->appointments.begin(); i != state->appointments.end();) {
      if (i->second.at <= now) {
        if (std::shared_ptr<Due> alive = i->second.due.lock()) due.push_back(std::move(alive));
        i = state->appointments.erase(i);
      } else {
        next = std::min(next, i->second.at);
        ++i;
      }
    }
    if (!due.empty()) {
      state->wakes_at = 0;  // it will look again by itself
      lock.unlock();
      for (const std::shared_ptr<Due>& each : due) each->expire_due();
      due.clear();
      lock.lock();
      continue;
    }
    state->wakes_at = next;
    if (next == kNever) {
      state->changed.wait(lock);
    } else {
      state->changed.wait_for(lock, std::chrono::duration<double>(next - now));
    }
  }
}

}  // namespace headrace::batching
