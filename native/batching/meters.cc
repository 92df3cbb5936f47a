#include "batching/meters.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace headrace::batching {
namespace {

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Adds one under a name that is almost always there already.
void count(std::map<std::string, std::uint64_t, std::less<>>& counts, std::string_view name) {
  const auto found = counts.find(name);
  if (found != counts.end()) {
    ++found->second;
  } else {
    counts.emplace(name, 1);
  }
}

}  // namespace

Histogram::Histogram(std::vector<double> upper_bounds)
    : bounds(std::move(upper_bounds)), counts(bounds.size() + 1, 0) {}

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin();
  ++counts[static_cast<std::size_t>(bucket)];
  sum += value;
}

Counts::Counts(std::vector<double> latency_bounds, std::vector<double> row_bounds)
    : queue_seconds(latency_bounds), compute_seconds(std::move(latency_bounds)), batch_rows(std::move(row_bounds)) {}

Meters::Meters(std::vector<double> latency_bounds, std::vector<double> row_bounds)
    : counts_(std::move(latency_bounds), std::move(row_bounds)) {}

void Meters::ran(std::int64_t rows, Reason reason, double assemble_seconds, double compute_seconds) {
  const std::lock_guard lock(mutex_);
  counts_.compute_seconds.observe(compute_seconds);
  counts_.batch_rows.observe(static_cast<double>(rows));
  ++counts_.batches[static_cast<std::size_t>(reason)];
  Runs& runs = counts_.runs[rows];
  ++runs.num_runs;
  runs.assemble_seconds += assemble_seconds;
  runs.compute_seconds += compute_seconds;
}

void Meters::answered(const std::vector<Answered>& calls) {
  if (calls.empty()) return;
  const double now = seconds_since_1970();
  const std::lock_guard lock(mutex_);
  for (const Answered& call : calls) {
    counts_.queue_seconds.observe(call.queue_seconds);
    counts_.answered_rows += call.rows;
    counts_.answered_seconds += call.total_seconds;
    counts_.queue_sum += call.queue_seconds;
    counts_.assemble_sum += call.assemble_seconds;
    counts_.compute_sum += call.compute_seconds;
  }
  counts_.num_answered += calls.size();
  const auto ok = counts_.outcomes.try_emplace("ok", 0).first;
  ok->second += calls.size();
  counts_.last_call_at = now;
}

void Meters::responded(double seconds) {
  const std::lock_guard lock(mutex_);
  counts_.respond_sum += seconds;
}

void Meters::ended(std::string_view outcome, double seconds) {
  const double now = seconds_since_1970();
  const std::lock_guard lock(mutex_);
  count(counts_.outcomes, outcome);
  ++counts_.num_failed;
  counts_.failed_seconds += seconds;
  counts_.last_call_at = now;
}

void Meters::shed(std::string_view reason) {
  const std::lock_guard lock(mutex_);
  count(counts_.shed, reason);
}

Counts Meters::read() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace headrace::batching
