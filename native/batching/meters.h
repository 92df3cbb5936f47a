// What is counted for one version of a model, for both doors, once.
//
// Outlives batchers: a version that is loaded again goes on counting where it was.  Any thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "batching/limits.h"

namespace headrace::batching {

// Cumulative counts are the reader's business: `counts[i]` is what fell between bound i - 1 and bound i, both as
// Prometheus has them (at most); the last one is what exceeded every bound.
struct Histogram {
  std::vector<double> bounds;
  std::vector<std::uint64_t> counts;
  double sum = 0;

  explicit Histogram(std::vector<double> upper_bounds);
  void observe(double value);
};

// Runs of a model on batches of one size.
struct Runs {
  std::uint64_t num_runs = 0;
  double assemble_seconds = 0;
  double compute_seconds = 0;
};

struct Counts {
  Histogram queue_seconds;    // of answered calls
  Histogram compute_seconds;  // of runs
  Histogram batch_rows;       // of runs
  std::array<std::uint64_t, kNumReasons> batches{};
  std::map<std::string, std::uint64_t, std::less<>> outcomes;  // "ok", or the reason of the error
  std::map<std::string, std::uint64_t, std::less<>> shed;      // calls that were never run, by reason

  // Sums over answered calls.
  std::uint64_t num_answered = 0;
  std::int64_t answered_rows = 0;
  double answered_seconds = 0;  // from admission to the answer
  double queue_sum = 0;
  double assemble_sum = 0;  // a call counts those of its whole batch; so with the next
  double compute_sum = 0;
  double respond_sum = 0;
  // Over all others.
  std::uint64_t num_failed = 0;
  double failed_seconds = 0;
  // Seconds since 1970; 0 when no call has ended yet.
  double last_call_at = 0;
  std::map<std::int64_t, Runs> runs;  // by rows

  Counts(std::vector<double> latency_bounds, std::vector<double> row_bounds);
};

// One answered call.
struct Answered {
  std::int64_t rows = 0;
  double queue_seconds = 0;
  double assemble_seconds = 0;
  double compute_seconds = 0;
  double total_seconds = 0;
};

class Meters {
 public:
  // Upper bounds of the histograms of seconds, and of rows; ascending.
  Meters(std::vector<double> latency_bounds, std::vector<double> row_bounds);

  void ran(std::int64_t rows, Reason reason, double assemble_seconds, double compute_seconds);
  void answered(const std::vector<Answered>& calls);
  // From the end of a run until the door had the answer ready.
  void responded(double seconds);
  // A call ended otherwise; `outcome` is the reason of its error as the contract names it.
  void ended(std::string_view outcome, double seconds);
  // A call was never run.
  void shed(std::string_view reason);

  Counts read() const;

 private:
  mutable std::mutex mutex_;
  Counts counts_;
};

}  // namespace headrace::batching
