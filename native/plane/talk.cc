#include "plane/talk.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "plane/statuses.h"

namespace headrace::plane {
namespace {

// The timer does not come more often than this to one stream: what falls due in between is told so much late.
constexpr double kTimerSeconds = 0.001;

}  // namespace

Talk::Talk(const Context& context, Method method, Method part, const CallInfo& info, Stream& stream)
    : context_(context), stream_(stream), part_(part), record_(context, method, info) {
  if (context.is_closing) {
    is_read_ = true;
    ending_ = draining();
  }
}

Talk::~Talk() {
  if (timer_) timer_->forget(*this);
}

void Talk::has_read(std::optional<Bytes> message) noexcept {
  Number number = 0;
  bool is_wanted = false;
  {
    const std::lock_guard lock(mutex_);
    is_reading_ = false;
    is_wanted = message && !is_read_ && !is_cancelled_;
    if (is_wanted) {
      number = next_number_++;
      ++num_open_;
      slots_.try_emplace(number);
    } else if (!message) {
      is_read_ = true;
    }
  }
  if (is_wanted) ask(number, *std::move(message));
  advance();
}

void Talk::stop(const Status& status) noexcept {
  {
    const std::lock_guard lock(mutex_);
    is_reading_ = false;
    if (!is_read_) ending_ = status;
    is_read_ = true;
  }
  advance();
}

void Talk::has_written(bool is_ok) noexcept {
  {
    const std::lock_guard lock(mutex_);
    is_writing_ = false;
    --num_open_;
  }
  if (!is_ok) cancel();
  advance();
}

void Talk::cancel() noexcept {
  std::unordered_map<Number, Slot> slots;
  {
    const std::lock_guard lock(mutex_);
    if (is_cancelled_ || is_finished_) return;
    is_cancelled_ = is_read_ = true;
    ending_ = {record_.code_of_departure(), "the caller has gone", {}};
    slots.swap(slots_);
    ready_.clear();
    to_pass_.clear();
  }
  for (auto& [number, slot] : slots) {
    if (slot.prediction) slot.prediction->leave();
    if (slot.passed) slot.passed->cancel();
  }
  advance();
}

void Talk::drain() noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (is_read_) return;
    is_read_ = true;
    ending_ = draining();
  }
  advance();
}

bool Talk::keep(Number number, std::shared_ptr<Prediction> prediction, double due_at) {
  const std::lock_guard lock(mutex_);
  const auto found = slots_.find(number);
  if (found == slots_.end()) return false;
  found->second.prediction = std::move(prediction);
  found->second.due_at = due_at;
  if (due_at < watched_until_) watch(due_at);
  return true;
}

void Talk::expire(Prediction&) {}

// With the lock held.
void Talk::watch(double due_at) {
  watched_until_ = due_at;
  if (!timer_) timer_ = batching::Timer::shared();
  timer_->call(shared_from_this(), due_at);
}

void Talk::expire_due() noexcept {
  std::vector<std::shared_ptr<Prediction>> expired;
  {
    const std::lock_guard lock(mutex_);
    const double now = batching::steady_seconds();
    double next = batching::kNever;
    for (auto& [number, slot] : slots_) {
      if (!slot.prediction || slot.ready) continue;
      if (slot.due_at <= now) {
        expired.push_back(slot.prediction);
        slot.due_at = batching::kNever;
      } else {
        next = std::min(next, slot.due_at);
      }
    }
    watched_until_ = batching::kNever;
    if (next < batching::kNever) watch(std::max(next, now + kTimerSeconds));
  }
  for (const std::shared_ptr<Prediction>& prediction : expired) expire(*prediction);
}

void Talk::answer(Number number, Block message, std::string id) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = slots_.find(number);
    if (found == slots_.end()) return;
    found->second.ready = Ready{std::move(message), std::move(id)};
    found->second.prediction.reset();
    found->second.passed.reset();
    collect(number);
  }
  advance();
}

void Talk::pass(Number number, PassReason reason, Bytes request, double deadline, std::shared_ptr<Passage> passage) {
  context_.meters.passed_on(record_.method(), reason);
  {
    const std::lock_guard lock(mutex_);
    if (slots_.find(number) == slots_.end()) return;
    to_pass_.push_back({number, std::move(request), deadline, std::move(passage)});
  }
  advance();
}

void Talk::refuse_all(Number number, const Status& status) {
  const std::lock_guard lock(mutex_);
  if (slots_.erase(number) == 0) return;
  --num_open_;
  is_read_ = true;
  ending_ = status;
}

bool Talk::take_id(std::string_view id) {
  const std::lock_guard lock(mutex_);
  return ids_.emplace(id).second;
}

// Moves to the line what may be written now.  With the lock held.
void Talk::collect(Number number) {
  if (!is_in_order()) {
    const auto found = slots_.find(number);
    ready_.push_back(*std::move(found->second.ready));
    slots_.erase(found);
    return;
  }
  while (true) {
    const auto first = slots_.find(next_in_order_);
    if (first == slots_.end() || !first->second.ready) return;
    ready_.push_back(*std::move(first->second.ready));
    slots_.erase(first);
    ++next_in_order_;
  }
}

Talk::Act Talk::next() {
  if (is_finished_) return Act::kNone;
  if (is_cancelled_) return is_writing_ ? Act::kNone : Act::kFinish;
  if (!to_pass_.empty()) return Act::kPass;
  if (!is_writing_ && !ready_.empty()) return Act::kWrite;
  if (!is_reading_ && !is_read_ && num_open_ < context_.window) return Act::kRead;
  if (is_read_ && num_open_ == 0 && !is_writing_) return Act::kFinish;
  return Act::kNone;
}

void Talk::advance() {
  const std::shared_ptr<Talk> self = shared_from_this();  // the door may let go of it at its end
  std::unique_lock lock(mutex_);
  if (is_at_it_) return;
  is_at_it_ = true;
  for (Act act = next(); act != Act::kNone; act = next()) {
    switch (act) {
      case Act::kRead:
        is_reading_ = true;
        lock.unlock();
        stream_.read();
        lock.lock();
        break;
      case Act::kWrite: {
        Ready ready = std::move(ready_.front());
        ready_.pop_front();
        ids_.erase(ready.id);  // from here on the caller may see the answer and use the id again
        is_writing_ = true;
        lock.unlock();
        stream_.write(std::move(ready.message));
        lock.lock();
        break;
      }
      case Act::kPass: {
        ToPass part = std::move(to_pass_.front());
        to_pass_.pop_front();
        lock.unlock();
        std::shared_ptr<PassedCall> passed =
            stream_.pass(part_, std::move(part.request), part.deadline, std::move(part.passage));
        lock.lock();
        const auto found = slots_.find(part.number);
        if (found != slots_.end()) {
          found->second.passed = std::move(passed);
        } else if (is_cancelled_ && passed) {
          lock.unlock();
          passed->cancel();
          lock.lock();
        }
        break;
      }
      default: {
        is_finished_ = true;
        const Status ending = ending_;
        lock.unlock();
        record_.ended(ending.code);
        stream_.finish(ending);
        lock.lock();
      }
    }
  }
  is_at_it_ = false;
}

}  // namespace headrace::plane
