// One run: what was asked for and what came of it.
#pragma once

#include <chrono>
#include <cstdint>

#include "histogram.h"
#include "options.h"
#include "tally.h"
#include "target.h"

namespace load {

using Clock = std::chrono::steady_clock;

inline std::int64_t nanoseconds(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
}

inline Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

// For gRPC, which takes deadlines in the time of the wall.
inline std::chrono::system_clock::time_point from_now(double value) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(std::chrono::duration<double>(value));
}

// Calls that end within it are measured.
struct Window {
  Clock::time_point begin;
  Clock::time_point end;

  bool holds(Clock::time_point moment) const { return begin <= moment && moment < end; }
};

struct Outcome {
  Tally measured;  // calls that ended within the window
  Tally outside;   // the others: warm-up and tail
  std::uint64_t started = 0;  // within and outside
  double seconds = 0;       // of the window
  double own_seconds = 0;   // this program's processor time in the window
  std::uint64_t unsent = 0;  // open loop: calls that were not made because too many were in flight
  std::uint64_t due = 0;     // open loop: calls that were due within the window
  Histogram late;            // open loop: how long after it was due a call was started
};

// `callers` callers, each with one call at a time, until the window is over or all calls are made.
Outcome closed_loop(const Options& options, Target& target);

// Calls at random moments (a Poisson process), no matter what becomes of them.  Latency counts from when a call was due,
// so that a server cannot look better by holding up its callers; the deadline does, too.
Outcome open_loop(const Options& options, Target& target);

// Seconds of processor time of this program so far.
double processor_seconds();

}  // namespace load
