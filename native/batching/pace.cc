#include "batching/pace.h"

#include <algorithm>
#include <limits>

namespace headrace::batching {
namespace {

// The smaller of the two in the middle: one slow run, such as the first, is forgotten with the next.
double lower_median(const std::array<double, Pace::kRememberedRuns>& values, std::size_t count) {
  std::array<double, Pace::kRememberedRuns> sorted = values;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>((count - 1) / 2);
  std::nth_element(sorted.begin(), middle, sorted.begin() + static_cast<std::ptrdiff_t>(count));
  return *middle;
}

std::size_t bucket_of(std::int64_t rows) {
  if (rows <= 1) return 0;
  return static_cast<std::size_t>(64 - __builtin_clzll(static_cast<unsigned long long>(rows - 1)));
}

}  // namespace

void Pace::observe(std::int64_t rows, double seconds, double now) {
  if (is_known()) {
    const double expected = run_seconds(rows);
    ratios_.add(expected > 0 ? seconds / expected : 1);
    overrun_ = std::max(ratios_.quantile(kSure), 1.0);
  }
  const std::size_t number = std::min(bucket_of(rows), kNumBuckets - 1);
  num_buckets_ = std::max(num_buckets_, number + 1);
  Bucket& bucket = buckets_[number];
  const std::size_t place = bucket.num_runs % kRememberedRuns;
  bucket.seconds[place] = seconds;
  bucket.rows[place] = static_cast<double>(std::max<std::int64_t>(rows, 1));
  ++bucket.num_runs;
  bucket.last_at = now;
  const std::size_t count = std::min(bucket.num_runs, kRememberedRuns);
  bucket.median_seconds = lower_median(bucket.seconds, count);
  bucket.median_rows = lower_median(bucket.rows, count);
  find_knots(now);
}

void Pace::find_knots(double now) {
  num_knots_ = 0;
  seconds_per_row_ = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < num_buckets_; ++i) {
    Bucket& bucket = buckets_[i];
    if (bucket.num_runs == 0) continue;
    if (now - bucket.last_at > kRememberedSeconds) {
      bucket.num_runs = 0;
      continue;
    }
    knots_[num_knots_++] = {bucket.median_rows, bucket.median_seconds};
    seconds_per_row_ = std::min(seconds_per_row_, bucket.median_seconds / bucket.median_rows);
  }
}

double Pace::run_seconds(std::int64_t rows) const {
  if (num_knots_ == 0) return 0;
  const auto wanted = static_cast<double>(rows);
  if (wanted <= knots_[0].rows) return knots_[0].seconds;
  for (std::size_t i = 1; i < num_knots_; ++i) {
    const Knot &low = knots_[i - 1], &high = knots_[i];
    if (wanted > high.rows) continue;
    return low.seconds + (high.seconds - low.seconds) * (wanted - low.rows) / (high.rows - low.rows);
  }
  const Knot& last = knots_[num_knots_ - 1];
  return last.seconds * wanted / last.rows;
}

double Pace::seconds_until_done(std::int64_t rows_ahead, std::int64_t rows, std::size_t num_lanes) const {
  return static_cast<double>(rows_ahead) * seconds_per_row_ / static_cast<double>(num_lanes) + run_seconds(rows);
}

double Pace::retry_seconds(std::int64_t waiting_rows, std::size_t num_lanes) const {
  if (!is_known()) return kUnknownRetrySeconds;
  return std::clamp(seconds_until_done(waiting_rows, 1, num_lanes), 0.001, kLongestRetrySeconds);
}

}  // namespace headrace::batching
