// Time in seconds.
#pragma once

#include <chrono>
#include <functional>

namespace headrace::batching {

// Python's time.monotonic() on Linux.
inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Tests bring one of their own; empty means the steady one.
using Clock = std::function<double()>;

}  // namespace headrace::batching
