#include "batching/state.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

namespace headrace::batching {
namespace {

// A batch is divided among lanes when that costs no more than this, as a factor,
constexpr double kDividedCosts = 1.02;
// and when a piece runs for so long: what is shorter is done before another lane is awake.
constexpr double kLeastPieceSeconds = 0.0005;

// 1234567 as 1,234,567.
std::string with_commas(std::size_t number) {
  std::string text = std::to_string(number);
  for (std::size_t end = text.size(); end > 3;) {
    end -= 3;
    text.insert(end, 1, ',');
  }
  return text;
}

}  // namespace

// Admission.

std::optional<Refusal> Batcher::State::admit(Call& call, double now) {
  Refusal refusal;
  if (is_closed) {
    refusal.error = closed_by;
    refusal.outcome = closed_outcome;
    return refusal;
  }
  const bool is_asked = call.deadline < kNever && pace.is_known();
  Progress& progress = call.progress_;
  if (is_asked) progress.expected_at = expected_at(call, now);
  // A mere prediction never leaves a lane idle, nor could it be corrected then.
  if (waiting.is_empty()) return std::nullopt;
  if (waiting.rows() + progress.rows > limits.max_waiting_rows) {
    refusal.kind = Refusal::Kind::kNoPermit;
  } else if (waiting.nbytes() + call.nbytes > limits.max_waiting_bytes) {
    refusal.kind = Refusal::Kind::kNoPermit;
    refusal.why = "inputs of more than " + with_commas(limits.max_waiting_bytes) + " bytes would wait";
  } else if (is_asked && progress.expected_at + forecast.margin_seconds() > due_at(call)) {
    refusal.kind = Refusal::Kind::kLate;
    refusal.why = "the call would miss its deadline";
  } else {
    return std::nullopt;
  }
  refusal.outcome = "NO_PERMIT";
  refusal.waiting_rows = waiting.rows();
  refusal.limit = limits.max_waiting_rows;
  refusal.retry_after_seconds = pace.retry_seconds(waiting.rows(), num_lanes);
  return refusal;
}

double Batcher::State::expected_at(const Call& call, double now) {
  free_at_.clear();
  for (const Batch* batch : running) free_at_.push_back(std::max(now, batch->taken_at + pace.run_seconds(batch->rows)));
  free_at_.resize(num_lanes, now);
  const Progress& progress = call.progress_;
  return forecast.done_at(waiting.rows_before(progress.part.order), progress.rows, pace, limits.max_batch_rows, free_at_);
}

void Batcher::State::compare(const Call& call, double done_at) {
  if (call.progress_.expected_at < kNever) forecast.observe(call.progress_.expected_at, done_at);
}

void Batcher::State::enqueue(std::shared_ptr<Call> owned, double now) {
  Call& call = *owned;
  Progress& progress = call.progress_;
  progress.keeper = std::move(owned);
  progress.admitted_at = now;
  scratch.clear();
  if (is_batchable) {
    for (const Input& input : call.inputs) {
      scratch.push_back(input.element ? static_cast<std::int64_t>(*input.element) : -1);
      scratch.push_back(static_cast<std::int64_t>(input.shape.size()));
      if (!input.shape.empty()) scratch.insert(scratch.end(), input.shape.begin() + 1, input.shape.end());
    }
  }
  const std::int64_t step = slice_rows(call, progress.rows);
  const auto row_bytes = call.nbytes / static_cast<std::size_t>(std::max<std::int64_t>(progress.rows, 1));
  const auto add = [&](Part& part, std::int64_t first, std::int64_t rows, std::size_t nbytes) {
    part.call = &call;
    part.first = first;
    part.rows = rows;
    part.nbytes = nbytes;
    part.is_whole = rows == progress.rows;
    part.admitted_at = now;
    part.order = progress.part.order;
    part.order.first = first;
    waiting.add(part, scratch);
  };
  if (progress.rows <= step) {
    progress.parts_left = 1;
    add(progress.part, 0, progress.rows, call.nbytes);
  } else {
    const std::int64_t count = (progress.rows + step - 1) / step;
    progress.parts_left = static_cast<std::size_t>(count);
    progress.slices = std::vector<Part>(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t rows = std::min(step, progress.rows - i * step);
      add(progress.slices[static_cast<std::size_t>(i)], i * step, rows, static_cast<std::size_t>(rows) * row_bytes);
    }
  }
  ++num_arrivals;
  ++num_in_flight;
}

std::int64_t Batcher::State::slice_rows(const Call& call, std::int64_t rows) const {
  if (!is_batchable) return rows;
  const std::size_t row_bytes = std::max<std::size_t>(call.nbytes / static_cast<std::size_t>(rows), 1);
  const auto affordable = static_cast<std::int64_t>(limits.max_batch_bytes / row_bytes);
  return std::max<std::int64_t>(std::min(limits.max_batch_rows, affordable), 1);
}

// Dispatch.

std::optional<Candidate> Batcher::State::candidate(double now, double& wakes_at) {
  if (!again.empty()) return Candidate{nullptr, Reason::kFull};
  std::optional<Candidate> best;
  const Part* best_part = nullptr;
  waiting.for_each_queue([&](Queue& queue) {
    Reason reason = Reason::kIdle;
    double closes_at = now;
    closing(queue, now, reason, closes_at);
    if (closes_at > now) {
      wakes_at = std::min({wakes_at, closes_at, queue.earliest_deadline()});
      return;
    }
    const Part* const first = queue.first();
    if (best_part == nullptr || first->order < best_part->order) {
      best = Candidate{&queue, reason};
      best_part = first;
    }
  });
  return best;
}

// When a batch of this queue closes, and why.
void Batcher::State::closing(const Queue& queue, double now, Reason& reason, double& closes_at) const {
  closes_at = now;
  if (!is_batchable || limits.max_delay_seconds <= 0) {
    reason = Reason::kIdle;
  } else if (is_draining) {
    reason = Reason::kDrain;
  } else if (queue.rows >= limits.max_batch_rows || queue.nbytes >= limits.max_batch_bytes) {
    reason = Reason::kFull;
  } else {
    reason = Reason::kDelay;
    closes_at = queue.earliest_admission() + limits.max_delay_seconds;
    const double latest_start = queue.earliest_deadline() - way_seconds() - pace.sure_seconds(queue.rows);
    if (latest_start < closes_at) {
      reason = Reason::kDeadline;
      closes_at = latest_start;
    }
  }
}

bool Batcher::State::fits(std::int64_t rows, std::size_t nbytes) const {
  return is_batchable && rows <= limits.max_batch_rows && nbytes <= limits.max_batch_bytes;
}

// The lane that takes all that waits makes everybody who came meanwhile wait for as long, and hands the same crowd back to
// itself: lanes that were unevenly loaded once stay so.  Where a row costs the same in a smaller batch, each takes its part.
std::int64_t Batcher::State::share_rows(const Queue& queue) const {
  const std::int64_t all = std::min(queue.rows, limits.max_batch_rows);
  if (num_lanes == 1 || all <= 1) return all;
  std::int64_t rows = queue.rows;
  for (const Batch* batch : running) rows += batch->rows;
  const auto lanes = static_cast<std::int64_t>(num_lanes);
  const std::int64_t share = (rows + lanes - 1) / lanes;
  if (share >= all || pace.run_seconds(share) < kLeastPieceSeconds) return all;
  const double divided = pace.run_seconds(share) + pace.run_seconds(all - share);
  return divided <= kDividedCosts * pace.run_seconds(all) ? share : all;
}

struct Batcher::State::Filling {
  std::vector<Part*> parts;
  std::vector<Part*> late;  // what cannot be in time, as far as one can tell
  std::int64_t rows = 0;
  std::size_t nbytes = 0;
  double due = kNever;  // the earliest of the parts'
  std::int64_t share = 0;  // more rows are left to other lanes
  Reason reason = Reason::kIdle;

  void add(Part* part, double due_at) {
    parts.push_back(part);
    rows += part->rows;
    nbytes += part->nbytes;
    due = std::min(due, due_at);
  }
};

std::unique_ptr<Batch> Batcher::State::fill(const Candidate& candidate, double now, Endings& endings) {
  if (candidate.queue == nullptr) return run_again(now);
  Filling filling;
  filling.reason = candidate.reason;
  filling.share = candidate.reason == Reason::kIdle ? share_rows(*candidate.queue) : limits.max_batch_rows;
  fill_from(*candidate.queue, now, filling, endings);
  if (filling.parts.empty() && !filling.late.empty()) {
    filling.add(filling.late.front(), kNever);  // a mere prediction never leaves a lane idle
    filling.late.erase(filling.late.begin());
  }
  for (Part* part : filling.late) {
    part->stage = Stage::kOver;
    if (!part->call->progress_.is_over) expire(*part->call, now, endings);
  }
  // A call of which one slice is late is late as a whole.
  filling.parts.erase(std::remove_if(filling.parts.begin(), filling.parts.end(),
                                     [&](Part* part) {
                                       if (!part->call->progress_.is_over) return false;
                                       part->stage = Stage::kOver;
                                       filling.rows -= part->rows;
                                       return true;
                                     }),
                      filling.parts.end());
  if (filling.parts.empty()) return nullptr;
  auto batch = std::make_unique<Batch>();
  batch->parts = std::move(filling.parts);
  batch->rows = filling.rows;
  batch->reason = filling.reason;
  batch->taken_at = now;
  batch->calls.reserve(batch->parts.size());
  for (Part* part : batch->parts) {
    Progress& progress = part->call->progress_;
    if (progress.started_at < 0) progress.started_at = now;
    part->stage = Stage::kRunning;
    ++progress.parts_running;
    batch->calls.push_back(progress.keeper);
  }
  return batch;
}

void Batcher::State::fill_from(Queue& queue, double now, Filling& filling, Endings& endings) {
  const double full_run = pace.sure_seconds(limits.max_batch_rows);
  while (waiting.rows() > 0 && !queue.is_empty()) {
    Part* const part = queue.first();
    if (!filling.parts.empty() && !fits(filling.rows + part->rows, filling.nbytes + part->nbytes)) {
      forecast.crowded(filling.rows);
      filling.reason = Reason::kFull;
      return;
    }
    if (!filling.parts.empty() && filling.rows + part->rows > filling.share) {
      forecast.crowded(filling.rows);
      return;
    }
    const double deadline = part->call->deadline;
    if (deadline <= now) {
      expire(*part->call, now, endings);
      continue;
    }
    const double due = due_at(*part->call);
    const double done_at = now + pace.sure_seconds(filling.rows + part->rows);
    // While more waits than one batch takes, whoever would make it a small one gives way (Nexus, SOSP 2019, section 6.3:
    // serving the most urgent first, however few fit beside it, costs everybody behind it).
    const bool is_crowded = filling.parts.empty() && is_batchable && queue.rows > limits.max_batch_rows;
    const double done_alone_at = now + pace.sure_seconds(part->rows);
    const bool is_late = done_alone_at > due || (is_crowded && now + full_run > due);
    if (!is_late && !filling.parts.empty() && done_at > std::min(filling.due, due)) {
      forecast.crowded(filling.rows);
      filling.reason = Reason::kDeadline;
      return;
    }
    waiting.remove(*part);
    part->stage = Stage::kRunning;
    if (is_late) {
      compare(*part->call, done_alone_at);
      filling.late.push_back(part);
    } else {
      filling.add(part, due);
    }
  }
}

std::unique_ptr<Batch> Batcher::State::run_again(double now) {
  Part* const part = again.front();
  again.pop_front();
  part->stage = Stage::kRunning;
  ++part->call->progress_.parts_running;
  auto batch = std::make_unique<Batch>();
  batch->parts = {part};
  batch->calls = {part->call->progress_.keeper};
  batch->rows = part->rows;
  batch->reason = Reason::kFull;
  batch->taken_at = now;
  return batch;
}

// Endings.

void Batcher::State::withdraw(Call& call) {
  Progress& progress = call.progress_;
  assert(!progress.is_over);
  progress.is_over = true;
  const auto stop = [&](Part& part) {
    if (part.stage == Stage::kWaiting) {
      waiting.remove(part);
      part.stage = Stage::kOver;
    } else if (part.stage == Stage::kAgain) {
      again.erase(std::find(again.begin(), again.end(), &part));
      part.stage = Stage::kOver;
    }
  };
  if (progress.slices.empty()) stop(progress.part);
  for (Part& slice : progress.slices) stop(slice);
}

void Batcher::State::refuse(Call& call, Refusal refusal, double now, Endings& endings) {
  withdraw(call);
  Progress& progress = call.progress_;
  if (progress.parts_taken > 0) {
    progress.pending = std::make_unique<Refusal>(std::move(refusal));
    return;
  }
  --num_in_flight;
  endings.refused.push_back({std::move(progress.keeper), std::move(refusal), now - progress.admitted_at});
}

void Batcher::State::expire(Call& call, double now, Endings& endings) {
  Refusal refusal;
  refusal.kind = Refusal::Kind::kExpired;
  refusal.outcome = "EXPIRED_IN_QUEUE";
  refusal.queue_seconds = now - call.progress_.admitted_at;
  refuse(call, std::move(refusal), now, endings);
}

void Batcher::State::expire_due(double now, Endings& endings) {
  while (Part* const part = waiting.find_due(now)) expire(*part->call, now, endings);
}

void Batcher::State::finish(Part& part, bool was_taken, const Batch& batch, const Timing& timing, double now,
                            Endings& endings) {
  Progress& progress = part.call->progress_;
  part.stage = Stage::kOver;
  --progress.parts_running;
  if (!was_taken) return;
  --progress.parts_taken;
  if (progress.is_over) {
    if (progress.pending == nullptr || progress.parts_taken > 0) return;
    --num_in_flight;
    endings.refused.push_back({std::move(progress.keeper), std::move(*progress.pending), now - progress.admitted_at});
    return;
  }
  progress.timing.assemble_seconds += batch.assemble_seconds;
  progress.timing.compute_seconds += timing.compute_seconds;
  progress.timing.variant = timing.variant;
  if (batch.rows >= progress.timing.batch_rows) {
    progress.timing.batch_rows = batch.rows;
    progress.timing.batch_calls = static_cast<std::int64_t>(batch.parts.size());
  }
  if (--progress.parts_left > 0) return;
  progress.is_over = true;
  --num_in_flight;
  compare(*part.call, now);
  progress.timing.queue_seconds = progress.started_at - progress.admitted_at;
  progress.timing.finished_at = timing.finished_at;
  const Timing& done = progress.timing;
  endings.answered.push_back({std::move(progress.keeper), done,
                              {progress.rows, done.queue_seconds, done.assemble_seconds, done.compute_seconds,
                               now - progress.admitted_at}});
}

void Batcher::State::note_idle(Endings& endings) {
  if (num_in_flight == 0 && !idle_acts.empty()) endings.idle_acts = std::exchange(idle_acts, {});
}

}  // namespace headrace::batching
