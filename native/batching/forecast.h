// When a call will be done that comes now, how much to allow for error, and how that is learned from calls that were told
// before.
//
// Lanes are followed as they will run what waits: batches as large as they have lately been while more waited, each as
// long as runs of that size take.  What this gets wrong, for whatever reason, shows when the calls end: most of them must
// be in time, so the margin is what all but one in twenty were late by.  Knows no clock: it is told the time.
#pragma once

#include <cstdint>
#include <vector>

#include "batching/pace.h"
#include "batching/recent.h"

namespace headrace::batching {

class Forecast {
 public:
  // Of the calls that were told a time, so many shall be done by then and the margin.
  static constexpr double kShareInTime = 0.95;

  // A batch was taken while more waited than it could take.
  void crowded(std::int64_t rows) { crowded_rows_.add(static_cast<double>(rows)); }

  // When `rows` rows are done that come behind so many, if the lanes are free at these times; `free_at` is changed.
  double done_at(std::int64_t rows_ahead, std::int64_t rows, const Pace& pace, std::int64_t max_batch_rows,
                 std::vector<double>& free_at) const;

  // A call that was to be done at one time was, or would have been, at another.
  void observe(double expected_at, double done_at);
  // What to add to an expectation.  Never negative: runs of luck are not counted on.
  double margin_seconds() const;

 private:
  Recent crowded_rows_;
  Recent late_by_;
  mutable double margin_seconds_ = 0;
  mutable bool is_margin_known_ = true;
};

}  // namespace headrace::batching
