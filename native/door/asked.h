// Calls to the complete server on a queue, in the shape of gRPC's callback reactors.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "door/queue.h"

namespace headrace::door {

// One message there, one back.
class AskedOnce {
 public:
  AskedOnce() = default;
  virtual ~AskedOnce() = default;
  AskedOnce(const AskedOnce&) = delete;
  AskedOnce& operator=(const AskedOnce&) = delete;

  // All of these outlive the call.
  void start(grpc::GenericStub& stub, Queue& queue, grpc::ClientContext& context, const std::string& path,
             const grpc::ByteBuffer& request, grpc::ByteBuffer& response);

  // Nothing more happens.
  virtual void OnDone(const grpc::Status& status) = 0;

 private:
  void is_over(bool ok);

  Queue* queue_ = nullptr;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader_;
  grpc::Status status_;
  Told<AskedOnce> over_{*this, &AskedOnce::is_over};
};

// Messages there and back.  It ends when nothing that was begun is still to happen and nobody holds it.
class AskedOften {
 public:
  AskedOften() = default;
  virtual ~AskedOften() = default;
  AskedOften(const AskedOften&) = delete;
  AskedOften& operator=(const AskedOften&) = delete;

  // All of these outlive the call.  Everything here is called on the queue's thread.
  void start(grpc::GenericStub& stub, Queue& queue, grpc::ClientContext& context, const std::string& path, int num_holds);
  void RemoveHold() { release(); }
  void StartRead(grpc::ByteBuffer* message);
  void StartWrite(const grpc::ByteBuffer* message);
  void StartWritesDone();

  // Not ok when the call ended with nothing but its end.
  virtual void OnReadInitialMetadataDone(bool ok) = 0;
  virtual void OnReadDone(bool ok) = 0;
  virtual void OnWriteDone(bool ok) = 0;
  // Nothing more happens.
  virtual void OnDone(const grpc::Status& status) = 0;

 private:
  void has_started(bool ok);
  void has_initial_metadata(bool ok);
  void has_read(bool ok);
  void has_written(bool ok);
  void has_written_all(bool ok);
  void is_over(bool ok);
  void release();

  Queue* queue_ = nullptr;
  grpc::ClientContext* context_ = nullptr;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::Status status_;
  int num_pending_ = 0;  // what was begun, and holds
  // gRPC writes nothing before the call has started.
  bool has_started_ = false;
  const grpc::ByteBuffer* first_message_ = nullptr;
  bool is_without_messages_ = false;
  Told<AskedOften> started_{*this, &AskedOften::has_started};
  Told<AskedOften> told_{*this, &AskedOften::has_initial_metadata};
  Told<AskedOften> read_{*this, &AskedOften::has_read};
  Told<AskedOften> written_{*this, &AskedOften::has_written};
  Told<AskedOften> written_all_{*this, &AskedOften::has_written_all};
  Told<AskedOften> over_{*this, &AskedOften::is_over};
};

}  // namespace headrace::door
