// How long a model has lately taken for so many rows, to tell callers early what cannot be done in time.
//
// A robust model that is learned as it runs: for each power of two the medians of the last few runs, a straight line
// between them, the same time below the smallest size that is known, and as much per row above the largest.  Sizes
// that have not been seen for long are forgotten, so that a slow spell is too.  Knows no clock: it is told the time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "batching/recent.h"

namespace headrace::batching {

class Pace {
 public:
  static constexpr std::size_t kRememberedRuns = 16;
  static constexpr double kRememberedSeconds = 30;
  static constexpr double kLongestRetrySeconds = 30;
  static constexpr double kSure = 0.9;
  static constexpr double kUnknownRetrySeconds = 0.1;

  // A run has taken so long; `now` is when it ended.
  void observe(std::int64_t rows, double seconds, double now);

  bool is_known() const { return num_knots_ > 0; }

  // One run of so many rows; 0 while nothing is known.
  double run_seconds(std::int64_t rows) const;

  // What nine of ten runs of so many rows do not exceed.
  double sure_seconds(std::int64_t rows) const { return run_seconds(rows) * overrun_; }

  // What a row costs in the batches that serve best; 0 while nothing is known.
  double seconds_per_row() const { return seconds_per_row_; }

  // How long a call with `rows` rows takes that arrives behind so many rows.
  double seconds_until_done(std::int64_t rows_ahead, std::int64_t rows, std::size_t num_lanes) const;

  // When it is worth to ask again, with so many rows waiting now.
  double retry_seconds(std::int64_t waiting_rows, std::size_t num_lanes) const;

 private:
  // Runs of (2^(i-1), 2^i] rows.
  struct Bucket {
    std::array<double, kRememberedRuns> seconds{};
    std::array<double, kRememberedRuns> rows{};
    std::size_t num_runs = 0;  // all that ever were
    double last_at = 0;
    double median_seconds = 0;
    double median_rows = 0;
  };
  struct Knot {
    double rows, seconds;
  };
  static constexpr std::size_t kNumBuckets = 64;

  void find_knots(double now);

  std::array<Bucket, kNumBuckets> buckets_;
  std::size_t num_buckets_ = 0;  // up to the largest that was ever used
  std::array<Knot, kNumBuckets> knots_{};
  std::size_t num_knots_ = 0;
  double seconds_per_row_ = 0;
  Recent ratios_;  // of what runs have taken to what was expected of them
  double overrun_ = 1;
};

}  // namespace headrace::batching
