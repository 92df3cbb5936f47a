#include "batching/batcher.h"

#include <algorithm>
#include <cassert>
#include <new>
#include <utility>

#include "batching/state.h"

namespace headrace::batching {

std::shared_ptr<Batcher> Batcher::open(const Limits& limits, bool is_batchable, std::shared_ptr<LaneGroup> lanes,
                                       std::shared_ptr<Meters> meters) {
  const std::shared_ptr<Batcher> batcher(new Batcher(limits, is_batchable, std::move(lanes), std::move(meters)));
  batcher->lanes_->add(*batcher);
  return batcher;
}

Batcher::Batcher(const Limits& limits, bool is_batchable, std::shared_ptr<LaneGroup> lanes,
                 std::shared_ptr<Meters> meters)
    : limits_(limits),
      lanes_(std::move(lanes)),
      meters_(std::move(meters)),
      programs_(lanes_->num_lanes()),
      state_(std::make_unique<State>(limits_, is_batchable, lanes_->num_lanes())) {
  for (std::size_t lane = 0; lane < lanes_->num_lanes(); ++lane) assemblies_.push_back(std::make_unique<Assembly>());
}

Batcher::~Batcher() {
  close(nullptr, "", true);
  lanes_->remove(*this);
}

std::optional<Refusal> Batcher::submit(std::shared_ptr<Call> owned) {
  Call& call = *owned;
  const double now = lanes_->now();
  LaneGroup::Wake wake;
  std::optional<Refusal> refusal;
  {
    const std::lock_guard lock(lanes_->mutex_);
    State& state = *state_;
    Progress& progress = call.progress_;
    progress.rows = state.is_batchable && !call.inputs.empty() ? call.inputs[0].shape[0] : 1;
    progress.part.order = {call.priority, std::min(call.deadline, now + kPatienceSeconds), state.num_arrivals, 0};
    refusal = state.admit(call, now);
    if (!refusal) {
      if (!state.has_work() && state.running.empty()) {
        state.virtual_time = std::max(state.virtual_time, lanes_->virtual_time_);
      }
      state.enqueue(std::move(owned), now);
      wake = lanes_->lane_to_wake_for(*this, now);
      if (call.deadline < lanes_->watched_until_) lanes_->watch_deadlines();
    }
  }
  wake();
  if (refusal && refusal->kind != Refusal::Kind::kClosed) {
    meters_->ended(refusal->outcome, 0);
    meters_->shed(refusal->kind == Refusal::Kind::kLate ? "late" : "no_permit");
  }
  return refusal;
}

Departure Batcher::leave(Call& call) {
  const double now = lanes_->now();
  Endings endings;
  bool never_ran = false;
  {
    const std::lock_guard lock(lanes_->mutex_);
    Progress& progress = call.progress_;
    if (progress.is_over || progress.keeper == nullptr) return Departure::kTooLate;
    never_ran = progress.started_at < 0;
    state_->withdraw(call);
    --state_->num_in_flight;
    endings.forgotten.push_back(std::move(progress.keeper));
    state_->note_idle(endings);
  }
  meters_->ended("left", now - call.progress_.admitted_at);
  if (never_ran) meters_->shed("left");
  endings.tell(*meters_);
  return never_ran ? Departure::kNeverRan : Departure::kRunning;
}

void Batcher::expire(Call& call) {
  const double now = lanes_->now();
  Endings endings;
  {
    const std::lock_guard lock(lanes_->mutex_);
    Progress& progress = call.progress_;
    if (progress.is_over || progress.keeper == nullptr || progress.started_at >= 0) return;
    state_->expire(call, now, endings);
    state_->note_idle(endings);
  }
  endings.tell(*meters_);
}

bool Batcher::settle(std::unique_ptr<Batch>& batch, const std::vector<Output>& outputs, double compute_seconds,
                     int variant) {
  Timing timing;
  timing.compute_seconds = compute_seconds;
  timing.finished_at = lanes_->now();
  timing.variant = variant;
  std::vector<bool> is_taken(batch->parts.size());
  {
    const std::lock_guard lock(lanes_->mutex_);
    if (state_->is_batchable) {
      const auto has_rows = [&](const Output& output) { return !output.shape.empty() && output.shape[0] == batch->rows; };
      if (!std::all_of(outputs.begin(), outputs.end(), has_rows)) return false;
    }
    for (std::size_t i = 0; i < batch->parts.size(); ++i) {
      Progress& progress = batch->parts[i]->call->progress_;
      is_taken[i] = !progress.is_over;
      if (is_taken[i]) ++progress.parts_taken;
    }
  }
  std::int64_t row = 0;
  for (std::size_t i = 0; i < batch->parts.size(); ++i) {
    const Part& part = *batch->parts[i];
    if (is_taken[i]) {
      Progress& progress = part.call->progress_;
      const bool is_alone = batch->parts.size() == 1 && part.is_whole;
      const Share share{outputs, part.first, part.rows, row, progress.rows, is_alone};
      std::unique_lock<std::mutex> one_at_a_time;
      if (!part.is_whole) one_at_a_time = std::unique_lock(progress.taking);
      part.call->take(share);
    }
    row += part.rows;
  }
  assemblies_[batch->lane]->release(*batch, outputs);
  const double now = lanes_->now();
  // All that a batch costs its lane, so that predictions hold what callers see.
  const double seconds = std::max(compute_seconds, now - batch->taken_at);
  Endings endings;
  {
    const std::lock_guard lock(lanes_->mutex_);
    state_->running.erase(batch.get());
    state_->virtual_time += seconds - batch->charged_seconds;
    for (std::size_t i = 0; i < batch->parts.size(); ++i) {
      state_->finish(*batch->parts[i], is_taken[i], *batch, timing, now, endings);
    }
    state_->note_idle(endings);
  }
  meters_->ran(batch->rows, batch->reason, batch->assemble_seconds, compute_seconds);
  endings.tell(*meters_);
  {
    const std::lock_guard lock(lanes_->mutex_);  // when they have their answers: nobody waits for what is learned
    state_->pace.observe(batch->rows, seconds, now);
  }
  // The last thing: this may be its last owner.
  const std::shared_ptr<Batcher> kept = std::move(batch->batcher);
  batch.reset();
  return true;
}

void Batcher::sent(double seconds) { state_->way_back.observe(seconds); }

void Batcher::fail(std::unique_ptr<Batch> batch, std::shared_ptr<const void> error, const std::string& outcome) {
  const std::shared_ptr<Batcher> kept = std::move(batch->batcher);
  give_up(*batch, std::move(error), outcome);
}

Batch::~Batch() {
  if (const std::shared_ptr<Batcher> kept = std::move(batcher)) kept->give_up(*this, kept->loss_, kept->loss_outcome_);
}

void Batcher::give_up(Batch& batch, std::shared_ptr<const void> error, const std::string& outcome) {
  assemblies_[batch.lane]->release(batch, {});
  const double now = lanes_->now();
  Endings endings;
  LaneGroup::Wake wake;
  {
    const std::lock_guard lock(lanes_->mutex_);
    State& state = *state_;
    state.running.erase(&batch);
    state.virtual_time += now - batch.taken_at - batch.charged_seconds;
    for (Part* part : batch.parts) {
      Progress& progress = part->call->progress_;
      --progress.parts_running;
      part->stage = Stage::kOver;
      if (progress.is_over) continue;
      if (batch.parts.size() > 1 && !state.is_closed) {
        part->stage = Stage::kAgain;
        state.again.push_back(part);
        continue;
      }
      Refusal refusal;
      const bool is_guilty = batch.parts.size() == 1;
      refusal.kind = is_guilty ? Refusal::Kind::kError : Refusal::Kind::kClosed;
      refusal.error = is_guilty ? error : state.closed_by;
      refusal.outcome = is_guilty ? outcome : state.closed_outcome;
      state.refuse(*part->call, std::move(refusal), now, endings);
    }
    state.note_idle(endings);
    wake = lanes_->lane_to_wake(now);
  }
  wake();
  endings.tell(*meters_);
}

void Batcher::run_alone() {
  const std::lock_guard lock(lanes_->mutex_);
  assert(state_->num_arrivals == 0);
  state_->is_batchable = false;
}

void Batcher::set_loss(std::shared_ptr<const void> error, std::string outcome) {
  loss_ = std::move(error);
  loss_outcome_ = std::move(outcome);
}

void Batcher::set_feed_elements(std::size_t lane, std::vector<std::optional<Element>> elements) {
  assemblies_[lane]->set_elements(std::move(elements));
}

void Batcher::set_program(std::size_t lane, std::shared_ptr<Program> program) {
  programs_.at(lane) = std::move(program);
}

void Batcher::drain() {
  std::vector<LaneGroup::Wake> wakes;
  const double now = lanes_->now();
  {
    const std::lock_guard lock(lanes_->mutex_);
    state_->is_draining = true;
    while (LaneGroup::Wake wake = lanes_->lane_to_wake(now)) wakes.push_back(std::move(wake));
  }
  for (const LaneGroup::Wake& wake : wakes) wake();
}

void Batcher::close(std::shared_ptr<const void> error, std::string outcome, bool abandon) {
  const double now = lanes_->now();
  Endings endings;
  {
    const std::lock_guard lock(lanes_->mutex_);
    State& state = *state_;
    if (!state.is_closed) {
      state.is_closed = true;
      state.closed_by = error;
      state.closed_outcome = outcome;
    }
    const auto refuse = [&](Call& call, Refusal::Kind kind) {
      Refusal refusal;
      refusal.kind = kind;
      refusal.error = error;
      refusal.outcome = outcome;
      refusal.queue_seconds = now - call.progress_.admitted_at;
      state.refuse(call, std::move(refusal), now, endings);
    };
    while (Part* const part = state.waiting.any()) refuse(*part->call, Refusal::Kind::kClosed);
    while (!state.again.empty()) refuse(*state.again.front()->call, Refusal::Kind::kClosed);
    if (abandon) {
      for (const Batch* batch : state.running) {
        for (const Part* part : batch->parts) {
          if (!part->call->progress_.is_over) refuse(*part->call, Refusal::Kind::kError);
        }
      }
    }
    state.note_idle(endings);
  }
  endings.tell(*meters_);
}

void Batcher::when_idle(std::function<void()> act) {
  {
    const std::lock_guard lock(lanes_->mutex_);
    if (state_->num_in_flight > 0) {
      state_->idle_acts.push_back(std::move(act));
      return;
    }
  }
  act();
}

std::int64_t Batcher::calls_in_flight() const {
  const std::lock_guard lock(lanes_->mutex_);
  return state_->num_in_flight;
}

std::int64_t Batcher::waiting_rows() const {
  const std::lock_guard lock(lanes_->mutex_);
  return state_->waiting.rows();
}

bool Batcher::is_batchable() const {
  const std::lock_guard lock(lanes_->mutex_);
  return state_->is_batchable;
}

bool Batcher::assemble(std::unique_ptr<Batch>& batch) {
  const double started_at = lanes_->now();
  try {
    assemblies_[batch->lane]->assemble(*batch, limits_);
  } catch (const std::bad_alloc&) {
    fail(std::move(batch), loss_, loss_outcome_);
    return false;
  }
  batch->assemble_seconds = lanes_->now() - started_at;
  return true;
}

}  // namespace headrace::batching
