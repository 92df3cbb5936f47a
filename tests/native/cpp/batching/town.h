// A model, its lanes and callers who come whether they are answered or not: on a clock that jumps from one event to the
// next, with random numbers that are the same every time.
#pragma once

#include <cmath>
#include <functional>
#include <random>

#include "batching/scripted_call.h"

namespace headrace::batching {

struct Town {
  // What a run of so many rows takes; every one a little else.
  double seconds_of_a_run = 0.0023;
  double seconds_of_a_row = 0.0082;
  double spread = 0.08;  // of a lognormal
  std::size_t num_lanes = 2;
  std::int64_t max_batch_rows = 64;

  // What callers want, and what their messages lose on the way, which the batcher does not see.
  double deadline_seconds = 0.05;
  double seconds_in = 0.0004;
  double seconds_back = 0.0006;

  // From the middle on every run takes so many times as long.
  double slowdown = 1;

  struct Found {
    int num_calls = 0;
    int num_good = 0;     // answered in time, as the caller sees it
    int num_late = 0;     // computed, and too late
    int num_refused = 0;  // at once
    int num_expired = 0;  // before their turn
    bool has_idled = false;  // a lane, while something waited
    double busy_seconds = 0;
    double seconds = 0;
    double good_per_second() const { return num_good / seconds; }
  };

  // Rows a second of lanes that never wait, in batches of so many.
  double capacity(std::int64_t rows) const {
    const auto count = static_cast<double>(rows);
    return static_cast<double>(num_lanes) * count / (seconds_of_a_run + seconds_of_a_row * count);
  }

  Found live(double calls_per_second, double seconds, unsigned seed = 1) const;
};

}  // namespace headrace::batching
