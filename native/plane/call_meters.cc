#include "plane/call_meters.h"

#include <algorithm>
#include <utility>

namespace headrace::plane {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr std::size_t kUnknownCode = 2;

}  // namespace

CallMeters::CallMeters(std::vector<double> bounds) : bounds_(std::move(bounds)) {
  for (Counters& counters : counters_) counters.seconds = std::vector<std::atomic<std::uint64_t>>(bounds_.size() + 1);
}

void CallMeters::ended(Method method, int code, double seconds) {
  Counters& counters = counters_[static_cast<std::size_t>(method)];
  const auto index = static_cast<std::size_t>(code);
  counters.by_code[code >= 0 && index < kNumCodes ? index : kUnknownCode].fetch_add(1, kRelaxed);
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), seconds) - bounds_.begin();
  counters.seconds[static_cast<std::size_t>(bucket)].fetch_add(1, kRelaxed);
  counters.nanos.fetch_add(static_cast<std::uint64_t>(std::max(seconds, 0.0) * 1e9), kRelaxed);
  in_flight_.fetch_sub(1, kRelaxed);
}

void CallMeters::passed(Method method, PassReason reason) {
  passed_on(method, reason);
  in_flight_.fetch_sub(1, kRelaxed);
}

void CallMeters::passed_on(Method method, PassReason reason) {
  counters_[static_cast<std::size_t>(method)].passed[static_cast<std::size_t>(reason)].fetch_add(1, kRelaxed);
}

CallMeters::Counts CallMeters::read(Method method) const {
  const Counters& counters = counters_[static_cast<std::size_t>(method)];
  Counts counts;
  for (std::size_t i = 0; i < kNumCodes; ++i) counts.by_code[i] = counters.by_code[i].load(kRelaxed);
  for (const auto& each : counters.seconds) counts.seconds.push_back(each.load(kRelaxed));
  counts.seconds_sum = static_cast<double>(counters.nanos.load(kRelaxed)) / 1e9;
  for (std::size_t i = 0; i < counts.passed.size(); ++i) counts.passed[i] = counters.passed[i].load(kRelaxed);
  return counts;
}

}  // namespace headrace::plane
