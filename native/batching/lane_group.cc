#include "batching/lane_group.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <utility>

#include "batching/state.h"
#include "batching/timer.h"

namespace headrace::batching {
namespace {

// The timer does not come more often than this: what falls due in between is answered so much late.
constexpr double kTimerSeconds = 0.001;

// A source may be left alone for so long while its lane runs what came from it.
constexpr double kSoonSeconds = 0.0002;

bool is_readable(const Batch& batch) {
  return std::all_of(batch.feeds.begin(), batch.feeds.end(),
                     [](const Feed& feed) { return feed.element && feed.data != nullptr; });
}

// What is not known is 0.
bool is_soon(double seconds) { return seconds > 0 && seconds < kSoonSeconds; }

}  // namespace

LaneGroup::LaneGroup(std::size_t num_lanes, Clock clock) : clock_(std::move(clock)), lanes_(num_lanes) {}

LaneGroup::~LaneGroup() { assert(batchers_.empty()); }

std::unique_ptr<Batch> LaneGroup::take(std::size_t lane, double timeout_seconds) {
  std::unique_lock lock(mutex_);
  double now = now_holding(lock);
  const double limit = now + timeout_seconds;
  while (!is_closed_ && !std::exchange(lanes_[lane].is_rung, false)) {
    double wakes_at = limit;
    Endings endings;
    std::shared_ptr<Batcher> batcher;
    std::unique_ptr<Batch> batch = next(lane, now, wakes_at, batcher, endings);
    if (batcher != nullptr) {  // there was a batch, or calls that ended instead
      const Wake wake = lane_to_wake(now);
      watch_deadlines();
      const std::shared_ptr<Source> left = std::exchange(lanes_[lane].left, nullptr);
      const bool is_soon_back = batch == nullptr || is_soon(batch->charged_seconds);
      lock.unlock();
      wake();
      if (left != nullptr && !is_soon_back) left->leave();
      endings.tell(batcher->meters());
      if (batch != nullptr && batcher->assemble(batch)) return batch;
      lock.lock();
    } else if (now >= limit) {
      return nullptr;
    } else {
      wait(lock, lane, now, wakes_at);
    }
    now = now_holding(lock);
  }
  return nullptr;
}

std::unique_ptr<Batch> LaneGroup::serve(std::size_t lane, double timeout_seconds, const Settle& settle) {
  while (std::unique_ptr<Batch> batch = take(lane, timeout_seconds)) {
    const std::shared_ptr<Program> program = batch->batcher->programs_[lane];
    if (program == nullptr || !is_readable(*batch)) return batch;
    std::vector<Output> outputs;
    int variant = 0;
    const double started_at = now();
    try {
      variant = program->run(*batch, outputs);
    } catch (...) {
      batch->failure = std::current_exception();
      return batch;
    }
    if (!settle(batch, outputs, now() - started_at, variant)) {
      batch->outputs = std::move(outputs);
      return batch;
    }
  }
  return nullptr;
}

void LaneGroup::ring(std::size_t lane) {
  Wake wake;
  {
    const std::lock_guard lock(mutex_);
    lanes_[lane].is_rung = true;
    wake = wake_of(lanes_[lane]);
  }
  wake();
}

void LaneGroup::close() {
  std::vector<Wake> wakes;
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    for (Lane& lane : lanes_) wakes.push_back(wake_of(lane));
  }
  for (const Wake& wake : wakes) wake();
}

bool LaneGroup::is_closed() const {
  const std::lock_guard lock(mutex_);
  return is_closed_;
}

void LaneGroup::add(Batcher& batcher) {
  const std::lock_guard lock(mutex_);
  batcher.state_->virtual_time = virtual_time_;
  batchers_.push_back(&batcher);
}

void LaneGroup::remove(Batcher& batcher) {
  const std::lock_guard lock(mutex_);
  batchers_.erase(std::find(batchers_.begin(), batchers_.end(), &batcher));
}

// A clock that somebody gave may wait for something itself: it is asked while the lock is free.
double LaneGroup::now_holding(std::unique_lock<std::mutex>& lock) const {
  if (!clock_) return steady_seconds();
  lock.unlock();
  const double now = clock_();
  lock.lock();
  return now;
}

// Start-time fair queueing (Goyal, Vin and Cheng 1996): who has cost the lanes least so far goes first; who was away
// does not come back with a credit.
std::unique_ptr<Batch> LaneGroup::next(std::size_t lane, double now, double& wakes_at, std::shared_ptr<Batcher>& from,
                                       Endings& endings) {
  Batcher* best = nullptr;
  Candidate best_candidate;
  for (Batcher* batcher : batchers_) {
    Batcher::State& state = *batcher->state_;
    if (!state.has_work()) continue;
    const std::optional<Candidate> candidate = state.candidate(now, wakes_at);
    if (!candidate || (best != nullptr && best->state_->virtual_time <= state.virtual_time)) continue;
    best = batcher;
    best_candidate = *candidate;
  }
  if (best == nullptr) return nullptr;
  from = best->weak_from_this().lock();
  if (from == nullptr) return nullptr;  // it is being destroyed, which refuses all that it has
  Batcher::State& state = *best->state_;
  virtual_time_ = std::max(virtual_time_, state.virtual_time);
  std::unique_ptr<Batch> batch = state.fill(best_candidate, now, endings);
  state.note_idle(endings);
  if (batch == nullptr) return nullptr;
  batch->batcher = from;
  batch->lane = lane;
  batch->charged_seconds = state.pace.run_seconds(batch->rows);
  state.virtual_time += batch->charged_seconds;
  state.running.insert(batch.get());
  return batch;
}

void LaneGroup::wait(std::unique_lock<std::mutex>& lock, std::size_t number, double now, double wakes_at) {
  Lane& lane = lanes_[number];
  lane.is_waiting = true;
  lane.wakes_at = wakes_at;
  waiting_lanes_.push_back(number);
  if (!attend(lock, lane, wakes_at) && lane.is_waiting && !lane.is_rung && !is_closed_) {
    if (wakes_at == kNever) {
      lane.bell.wait(lock);
    } else {
      lane.bell.wait_for(lock, std::chrono::duration<double>(wakes_at - now));
    }
  }
  if (lane.is_waiting) {  // nobody chose it: the time has come, it was rung for, or it woke for nothing
    lane.is_waiting = false;
    waiting_lanes_.erase(std::find(waiting_lanes_.begin(), waiting_lanes_.end(), number));
  }
}

bool LaneGroup::attend(std::unique_lock<std::mutex>& lock, Lane& lane, double wakes_at) {
  std::shared_ptr<Source> source = lane.source.lock();
  if (source == nullptr) return false;
  lane.is_called.store(false, std::memory_order_relaxed);
  lane.attended = source;
  lock.unlock();
  const bool has_attended = source->attend(lane.is_called, wakes_at);
  lock.lock();
  lane.attended = nullptr;
  lane.left = has_attended ? std::move(source) : nullptr;
  return has_attended;
}

LaneGroup::Wake LaneGroup::wake_of(Lane& lane) {
  if (lane.attended != nullptr) lane.is_called.store(true, std::memory_order_relaxed);
  return {&lane, lane.attended};
}

LaneGroup::Wake LaneGroup::lane_to_wake(double now) {
  if (waiting_lanes_.empty()) return {};
  double wakes_at = kNever;
  bool is_ready = false;
  for (Batcher* batcher : batchers_) {
    if (batcher->state_->has_work() && batcher->state_->candidate(now, wakes_at)) {
      is_ready = true;
      break;
    }
  }
  if (!is_ready) {
    const bool is_seen_to = std::any_of(waiting_lanes_.begin(), waiting_lanes_.end(),
                                        [&](std::size_t number) { return lanes_[number].wakes_at <= wakes_at; });
    if (is_seen_to) return {};
  }
  Lane& lane = lanes_[waiting_lanes_.back()];
  waiting_lanes_.pop_back();
  lane.is_waiting = false;
  return wake_of(lane);
}

LaneGroup::Wake LaneGroup::lane_to_wake_for(const Batcher& batcher, double now) {
  Wake wake = lane_to_wake(now);
  if (!wake || wake.attended != nullptr || !is_soon(batcher.state_->pace.run_seconds(1))) return wake;
  if (const std::shared_ptr<Source> here = Source::here().lock()) {
    wake.lane->source = here;
    here->offer();
  }
  return wake;
}

void LaneGroup::watch_deadlines() {
  // A lane that waits looks after deadlines itself; a given clock is not the timer's.
  if (!waiting_lanes_.empty() || clock_) return;
  const double earliest = earliest_deadline();
  if (earliest >= watched_until_) return;
  watched_until_ = earliest;
  if (timer_ == nullptr) timer_ = Timer::shared();
  timer_->call(shared_from_this(), earliest);
}

double LaneGroup::earliest_deadline() const {
  double earliest = kNever;
  for (const Batcher* batcher : batchers_) {
    earliest = std::min(earliest, batcher->state_->waiting.earliest_deadline());
  }
  return earliest;
}

void LaneGroup::expire_due() noexcept {
  std::vector<std::pair<std::shared_ptr<Batcher>, Endings>> ended;
  {
    const std::lock_guard lock(mutex_);
    const double now = steady_seconds();
    for (Batcher* batcher : batchers_) {
      std::shared_ptr<Batcher> owned = batcher->weak_from_this().lock();
      if (owned == nullptr) continue;
      ended.emplace_back(std::move(owned), Endings());
      batcher->state_->expire_due(now, ended.back().second);
      batcher->state_->note_idle(ended.back().second);
    }
    const double earliest = earliest_deadline();
    watched_until_ = earliest < kNever ? std::max(earliest, now + kTimerSeconds) : kNever;
    if (earliest < kNever) timer_->call(shared_from_this(), watched_until_);
  }
  for (auto& [batcher, endings] : ended) endings.tell(batcher->meters());
}

}  // namespace headrace::batching
