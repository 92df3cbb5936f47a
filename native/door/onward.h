// The way to the complete server: a connection, and what callers are told when it is no longer there.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <atomic>
#include <memory>

#include "door/options.h"
#include "door/served.h"

namespace headrace::door {

class Onward {
 public:
  explicit Onward(const Options& options);

  grpc::GenericStub& stub() { return stub_; }

  // Until the complete server is known to be there, calls wait for it, each as long as its deadline allows.
  void set_there() { is_there_.store(true, std::memory_order_release); }
  // Prepare the context of a call that goes on for `caller`.
  void prepare(const Caller& caller, grpc::ClientContext& context) const;
  // End a caller's call as the complete server ended its own.
  grpc::Status pass_on(const grpc::Status& status, const grpc::ClientContext& context,
                       Caller& caller) const;
  // The same of a call that is not this caller's alone.
  grpc::Status pass_on_to_each(const grpc::Status& status, const grpc::ClientContext& context, Caller& caller) const;
  // As the complete server would say it: a status whose details are those of its trailers.
  plane::Status described(const grpc::Status& status, const grpc::ClientContext& context) const;

 private:
  bool is_gone(const grpc::Status& status, const grpc::ClientContext& context) const;

  const plane::Status gone_;
  grpc::GenericStub stub_;
  std::atomic<bool> is_there_{false};
};

inline grpc::Status status_of(const plane::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code), status.message, status.details};
}

}  // namespace headrace::door
