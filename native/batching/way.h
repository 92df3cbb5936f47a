// How long answers take from the model's end until the network has them.
#pragma once

#include <algorithm>
#include <atomic>

namespace headrace::batching {

// What nine of ten lately did not exceed: a step up for each that did, a ninth of it down for each that did not, so that
// one slow reader counts as one, however slow it is.  Any thread; two that report at once may lose one report.
class Way {
 public:
  void observe(double seconds) {
    const double now = seconds_.load(std::memory_order_relaxed);
    seconds_.store(seconds > now ? std::max(now * kUp, kLeastSeconds) : now * kDown, std::memory_order_relaxed);
  }
  double seconds() const { return seconds_.load(std::memory_order_relaxed); }

 private:
  static constexpr double kUp = 1.09, kDown = 1 / 1.009619, kLeastSeconds = 1e-6;  // 1.09 = 1.009619^9

  std::atomic<double> seconds_{0};
};

}  // namespace headrace::batching
