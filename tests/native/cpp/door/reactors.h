// How the plain server answers: each message with itself.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/support/byte_buffer.h>

namespace headrace::door {

class EchoEach final : public grpc::ServerGenericBidiReactor {
 public:
  EchoEach() { StartRead(&message_); }
  void OnReadDone(bool ok) override {
    if (ok) {
      StartWrite(&message_);
    } else {
      Finish(grpc::Status::OK);
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) StartRead(&message_);
    else Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer message_;
};

// Ends a call at once.
class Refuse final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refuse(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace headrace::door
