// The server under load: connections to it, and the requests.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <vector>

#include "options.h"

namespace load {

struct Target {
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;  // one a connection
  std::vector<grpc::ByteBuffer> bodies;

  // Reads the requests and connects.  Raises std::runtime_error when that has not happened within ten seconds.
  explicit Target(const Options& options);
};

}  // namespace load
