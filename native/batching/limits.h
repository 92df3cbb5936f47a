// How much may be computed together, and how much may wait.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace::batching {

struct Limits {
  std::int64_t max_batch_rows = 1;
  // Of inputs.  A single row that is larger runs alone.
  std::size_t max_batch_bytes = 1;
  std::int64_t max_waiting_rows = 1;
  // A call that is larger than what may wait is admitted when nothing else waits.
  std::size_t max_waiting_bytes = 1;
  // How long a batch that is not full waits for company; 0: never.
  double max_delay_seconds = 0;
};

// Why a batch closed.
enum class Reason : std::uint8_t {
  kFull,      // the next part would not have fitted, or the part must run alone
  kIdle,      // a lane was free, and took what waited, or its share
  kDelay,     // it had waited for company long enough
  kDeadline,  // more rows, or more waiting, would have cost a call its deadline
  kDrain,     // the server is shutting down: nobody waits for company
};

inline constexpr std::size_t kNumReasons = 5;

}  // namespace headrace::batching
