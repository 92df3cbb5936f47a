// The way to the complete server: a connection, and what callers are told when it is no longer there.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/server_context.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "door/options.h"

namespace headrace::door {

class Onward {
 public:
  explicit Onward(const Options& options);

  grpc::GenericStub& stub() { return stub_; }

  // Until the complete server is known to be there, calls wait for it, each as long as its deadline allows.
  void set_there() { is_there_.store(true, std::memory_order_release); }
  // Prepare the context of a call that goes on for `caller`.
  void prepare(const grpc::CallbackServerContext& caller, grpc::ClientContext& context) const;
  // End a caller's call as the complete server ended its own.
  grpc::Status pass_on(const grpc::Status& status, const grpc::ClientContext& context,
                       grpc::CallbackServerContext& caller) const;
  // As the complete server would say it: a status whose details are those of its trailers.
  plane::Status described(const grpc::Status& status, const grpc::ClientContext& context) const;

 private:
  bool is_gone(const grpc::Status& status, const grpc::ClientContext& context) const;

  const plane::Status gone_;
  grpc::GenericStub stub_;
  std::atomic<bool> is_there_{false};
};

// How many calls are under way, and how many may be.
class Occupancy {
 public:
  explicit Occupancy(std::int64_t limit) : limit_(limit) {}

  bool enter() {
    if (count_.fetch_add(1, std::memory_order_relaxed) < limit_) return true;
    leave();
    return false;
  }
  void leave() { count_.fetch_sub(1, std::memory_order_relaxed); }
  std::int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  const std::int64_t limit_;
  std::atomic<std::int64_t> count_{0};
};

inline grpc::Status too_many_calls() {
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "the server has as many calls under way as it takes; try again later"};
}

inline grpc::Status status_of(const plane::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code), status.message, status.details};
}

}  // namespace headrace::door
