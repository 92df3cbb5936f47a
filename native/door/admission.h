// Who is let in: so many calls at a time, each with so much to say of itself, and messages of such a size.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <cstdint>
#include <optional>

#include "door/inflation.h"
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
  explicit Admission(const Options& options)
      : options_(options),
        inflation_(static_cast<std::size_t>(options.max_message_bytes),
                   static_cast<std::size_t>(options.max_buffered_bytes)) {}

  // Why a call is not let in; nothing when it is, and then it must `leave`.
  std::optional<grpc::Status> enter(Caller& caller);
  void leave() { count_.fetch_sub(1, std::memory_order_relaxed); }
  std::int64_t count() const { return count_.load(std::memory_order_relaxed); }

  // How a call ends whose message was made readable with this outcome; null when it was.
  const plane::Status* refusal_of(Inflated outcome) const;
  const Inflation& inflation() const { return inflation_; }

 private:
  const Options& options_;
  const Inflation inflation_;
  std::atomic<std::int64_t> count_{0};
};

}  // namespace headrace::door
