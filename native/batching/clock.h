// Time in seconds.
#pragma once

#include <chrono>
#include <functional>
#include <limits>

namespace headrace::batching {

inline constexpr double kNever = std::numeric_limits<double>::infinity();

// Python's time.monotonic() on Linux.
inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Tests bring one of their own; empty means the steady one.
using Clock = std::function<double()>;

}  // namespace headrace::batching
