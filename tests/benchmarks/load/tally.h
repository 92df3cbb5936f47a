// What a thread has seen of its calls.  Threads keep their own, without locks; they are added up at the end.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <limits>
#include <map>
#include <string>

#include "histogram.h"

namespace load {

struct Tally {
  Histogram answers;  // latencies of the calls that ended OK
  Histogram errors;   // of all others
  // How many errors there were of each kind, and what the first of them said.  A kind is the code of the status and the
  // reason of its google.rpc.ErrorInfo, where there is one: "UNAVAILABLE/SERVER_DRAINING".  A call that was never sent, as
  // nobody listened, is "UNAVAILABLE/(not connected)".
  std::map<std::string, std::uint64_t> reasons;
  std::map<std::string, std::string> first_messages;
  std::uint64_t least_bytes = std::numeric_limits<std::uint64_t>::max();  // of an answer
  std::uint64_t most_bytes = 0;
  std::uint64_t good = 0;  // open loop: answers within the deadline, counted from when the call was due

  std::uint64_t ended() const { return answers.count() + errors.count(); }

  // A call ended.  `bytes` is the size of its answer, `latency` in nanoseconds.
  void note(const grpc::Status& status, std::uint64_t bytes, std::int64_t latency);
  void add(const Tally& other);
};

}  // namespace load
