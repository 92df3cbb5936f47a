// Sampled records of calls, for a tracing system: kept in a bounded line until somebody takes them.
//
// W3C Trace Context: a caller that sends a traceparent decides whether its call is recorded; for others a ratio does.
// https://www.w3.org/TR/trace-context/
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "batching/call.h"
#include "plane/exchange.h"

namespace headrace::plane {

struct Span {
  Method method = Method::kPredict;
  std::array<std::uint8_t, 16> trace_id{};
  std::array<std::uint8_t, 8> span_id{};
  std::array<std::uint8_t, 8> parent_id{};  // zeros: none
  std::string tracestate;
  std::int64_t started_at_nanos = 0;  // since 1970
  std::int64_t ended_at_nanos = 0;
  int code = 0;
  std::string version;  // models/{model}/versions/{version}; empty when no prediction was made
  batching::Timing timing;
};

class Spans {
 public:
  // Negative: no call is recorded, whatever its caller says.  Else the share of calls without a traceparent, 0 to 1.
  void set_ratio(double ratio) { ratio_.store(ratio, std::memory_order_relaxed); }

  // A span that begins now, for a call that is to be recorded.
  std::optional<Span> begin(Method method, const CallInfo& info) const;
  // It has ended now.  Left out, and counted, when too many wait to be taken.
  void end(Span span);

  // All that have ended since the last time.
  std::vector<Span> take();
  std::uint64_t num_left_out() const { return num_left_out_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t kMostWaiting = 8192;

  std::atomic<double> ratio_{-1.0};
  std::atomic<std::uint64_t> num_left_out_{0};
  std::mutex mutex_;
  std::vector<Span> waiting_;
};

// Sixty-four random bits; not for secrets.
std::uint64_t random_bits();

}  // namespace headrace::plane
