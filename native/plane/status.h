// How a call ends that has no answer.
#pragma once

#include <string>

namespace headrace::plane {

// The numbers of gRPC; only those that the plane itself speaks of.
enum class Code : int {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kResourceExhausted = 8,
  kInternal = 13,
  kUnavailable = 14,
};

struct Status {
  int code = 0;
  std::string message;
  // A google.rpc.Status, for the trailer grpc-status-details-bin; empty when there are no details.
  std::string details;

  bool is_ok() const { return code == 0; }
};

}  // namespace headrace::plane
