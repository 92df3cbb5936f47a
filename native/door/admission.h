// Who is let in: so many calls at a time, each with so much to say of itself.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <cstdint>
#include <optional>

namespace headrace::door {

// What callers may say of a call, in bytes as HTTP/2 counts them.
inline constexpr std::size_t kMaxMetadataBytes = 16 << 10;
// Beyond this gRPC gives up the whole connection, so it is well above: whoever comes between is refused alone.
inline constexpr int kMaxParsedMetadataBytes = 256 << 10;

class Admission {
 public:
  explicit Admission(std::int64_t limit) : limit_(limit) {}

  // Why a call is not let in; nothing when it is, and then it must `leave`.
  std::optional<grpc::Status> enter(const grpc::CallbackServerContext& caller);
  void leave() { count_.fetch_sub(1, std::memory_order_relaxed); }
  std::int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  const std::int64_t limit_;
  std::atomic<std::int64_t> count_{0};
};

}  // namespace headrace::door
