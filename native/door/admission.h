// Who is let in: so many calls at a time, each with so much to say of itself, and messages of such a size.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <cstdint>
#include <optional>

#include "door/options.h"
#include "door/served.h"

namespace headrace::door {

// Metadata beyond this makes gRPC give up the whole connection, so it is well above what is taken: whoever comes between
// is refused alone.
inline constexpr int kMaxParsedMetadataBytes = 256 << 10;

// The status of a call that is refused here, and the id that its caller may look for.
grpc::Status refuse(Caller& caller, const plane::Status& status);

class Admission {
 public:
  // `options` outlive it.
  explicit Admission(const Options& options) : options_(options) {}

  // Why a call is not let in; nothing when it is, and then it must `leave`.
  std::optional<grpc::Status> enter(Caller& caller);
  void leave() { count_.fetch_sub(1, std::memory_order_relaxed); }
  std::int64_t count() const { return count_.load(std::memory_order_relaxed); }

  bool is_too_large(const grpc::ByteBuffer& message) const;
  // How a call ends that has sent such a message.
  const plane::Status& too_large() const { return options_.too_large; }

 private:
  const Options& options_;
  std::atomic<std::int64_t> count_{0};
};

}  // namespace headrace::door
