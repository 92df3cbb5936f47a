// What is counted of the calls that the plane answers.  Any thread; nobody waits.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "plane/plane.h"

namespace headrace::plane {

// Why a call went to the complete server.
enum class PassReason : std::uint8_t {
  kDraining,   // the server is closing
  kRequest,    // malformed, or in a form that is not read here
  kName,       // does not mean a version that is ready
  kSignature,  // does not fit what the version takes
  kLeft,       // the version left just now
  kOutput,     // the model returned what is not written here
};

inline constexpr std::array<std::string_view, 6> kPassReasons{"draining", "request", "name",
                                                              "signature", "left", "output"};
inline constexpr std::size_t kNumCodes = 17;

class CallMeters {
 public:
  struct Counts {
    std::array<std::uint64_t, kNumCodes> by_code{};
    // counts[i] fell between bound i - 1 and bound i; the last one is above all.
    std::vector<std::uint64_t> seconds;
    double seconds_sum = 0;
    std::array<std::uint64_t, kPassReasons.size()> passed{};
  };

  // `bounds` are upper bounds of seconds, ascending.
  explicit CallMeters(std::vector<double> bounds);

  void began() { in_flight_.fetch_add(1, std::memory_order_relaxed); }
  void ended(Method method, int code, double seconds);
  // It began, and somebody else counts it.
  void passed(Method method, PassReason reason);
  // A message of a stream went to the complete server.
  void passed_on(Method method, PassReason reason);

  std::int64_t in_flight() const { return in_flight_.load(std::memory_order_relaxed); }
  Counts read(Method method) const;
  const std::vector<double>& bounds() const { return bounds_; }

 private:
  struct alignas(64) Counters {
    std::array<std::atomic<std::uint64_t>, kNumCodes> by_code{};
    std::vector<std::atomic<std::uint64_t>> seconds;
    std::atomic<std::uint64_t> nanos{0};
    std::array<std::atomic<std::uint64_t>, kPassReasons.size()> passed{};
  };

  const std::vector<double> bounds_;
  std::array<Counters, kMethodNames.size()> counters_;
  alignas(64) std::atomic<std::int64_t> in_flight_{0};
};

}  // namespace headrace::plane
