#include "door/latecomers.h"

#include <algorithm>
#include <optional>

namespace headrace::door {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than clients usually wait before they try again what was refused for the first time.
constexpr std::chrono::milliseconds kQuiet{50};

}  // namespace

class Latecomers::Kept final : public Reactor {
 public:
  Kept(Latecomers& latecomers, Served& call) : Reactor(call), latecomers_(latecomers), caller_(call.caller()) {}
  ~Kept() override { latecomers_.admission_.leave(); }

  void send_away() { Finish(refuse(caller_, latecomers_.told_)); }

  void OnCancel() override {
    if (latecomers_.take(*this)) Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  Latecomers& latecomers_;
  Caller& caller_;
};

void Latecomers::expect() {
  const std::lock_guard lock(mutex_);
  if (stage_ != Stage::kNone) return;
  last_came_at_ = Clock::now();
  stage_ = Stage::kKeeping;
}

void Latecomers::receive(Served& call) {
  const std::optional<grpc::Status> refusal = admission_.enter(call.caller());
  if (refusal) return turn_away(call, *refusal);
  auto* const kept = new Kept(*this, call);
  {
    const std::lock_guard lock(mutex_);
    if (stage_ == Stage::kKeeping) {
      last_came_at_ = Clock::now();
      kept_.insert(kept);
      return;
    }
  }
  kept->send_away();
}

void Latecomers::wait_until_quiet(std::chrono::duration<double> seconds) {
  std::unique_lock lock(mutex_);
  const Clock::time_point limit = Clock::now() + std::chrono::duration_cast<Clock::duration>(seconds);
  while (!is_hurried_) {
    const Clock::time_point until = std::min(limit, last_came_at_ + kQuiet);
    if (Clock::now() >= until) return;
    changed_.wait_until(lock, until);
  }
}

void Latecomers::send_away_after(std::chrono::duration<double> seconds) {
  std::unordered_set<Kept*> kept;
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, seconds, [this] { return is_hurried_; });
    stage_ = Stage::kSendingAway;
    kept.swap(kept_);
  }
  // Each is this function's now: none is over before it has been sent away.
  for (Kept* each : kept) each->send_away();
}

void Latecomers::hurry() {
  {
    const std::lock_guard lock(mutex_);
    is_hurried_ = true;
  }
  changed_.notify_all();
}

bool Latecomers::is_hurried() const {
  const std::lock_guard lock(mutex_);
  return is_hurried_;
}

bool Latecomers::take(Kept& kept) {
  const std::lock_guard lock(mutex_);
  return kept_.erase(&kept) > 0;
}

}  // namespace headrace::door
