#include "door/asked.h"

#include <grpcpp/support/client_callback.h>

namespace headrace::door {
namespace {

// Whether a call has ended with nothing but its end, which gRPC tells its own reactors only.
bool has_only_ended(const grpc_call* call) {
  class Reactor final : public grpc::internal::ClientReactor {
    void OnDone(const grpc::Status& /*status*/) override {}
  };
  return Reactor().InternalTrailersOnly(call);
}

}  // namespace

void AskedOnce::start(grpc::GenericStub& stub, Queue& queue, grpc::ClientContext& context, const std::string& path,
                      const grpc::ByteBuffer& request, grpc::ByteBuffer& response) {
  queue_ = &queue;
  queue.add();
  reader_ = stub.PrepareUnaryCall(&context, path, request, &queue.inner());
  reader_->StartCall();
  reader_->Finish(&response, &status_, static_cast<Event*>(&over_));
}

void AskedOnce::is_over(bool /*ok*/) {
  Queue& queue = *queue_;
  reader_.reset();  // it lies in the memory of the call, which may end with its context in `OnDone`
  OnDone(status_);
  queue.remove();
}

void AskedOften::start(grpc::GenericStub& stub, Queue& queue, grpc::ClientContext& context, const std::string& path,
                       int num_holds) {
  queue_ = &queue;
  context_ = &context;
  queue.add();
  num_pending_ = num_holds + 2;
  stream_ = stub.PrepareCall(&context, path, &queue.inner());
  stream_->StartCall(static_cast<Event*>(&started_));
  stream_->ReadInitialMetadata(static_cast<Event*>(&told_));
}

void AskedOften::StartRead(grpc::ByteBuffer* message) {
  ++num_pending_;
  stream_->Read(message, static_cast<Event*>(&read_));
}

void AskedOften::StartWrite(const grpc::ByteBuffer* message) {
  ++num_pending_;
  if (!has_started_) {
    first_message_ = message;
    return;
  }
  stream_->Write(*message, static_cast<Event*>(&written_));
}

void AskedOften::StartWritesDone() {
  ++num_pending_;
  if (!has_started_) {
    is_without_messages_ = true;
    return;
  }
  stream_->WritesDone(static_cast<Event*>(&written_all_));
}

void AskedOften::has_started(bool /*ok*/) {
  has_started_ = true;
  if (first_message_ != nullptr) {
    stream_->Write(*first_message_, static_cast<Event*>(&written_));
  } else if (is_without_messages_) {
    stream_->WritesDone(static_cast<Event*>(&written_all_));
  }
  release();
}

void AskedOften::has_initial_metadata(bool ok) {
  OnReadInitialMetadataDone(ok && !has_only_ended(context_->c_call()));
  release();
}

void AskedOften::has_read(bool ok) {
  OnReadDone(ok);
  release();
}

void AskedOften::has_written(bool ok) {
  OnWriteDone(ok);
  release();
}

void AskedOften::has_written_all(bool /*ok*/) { release(); }

void AskedOften::release() {
  if (--num_pending_ == 0) stream_->Finish(&status_, static_cast<Event*>(&over_));
}

void AskedOften::is_over(bool /*ok*/) {
  Queue& queue = *queue_;
  stream_.reset();
  OnDone(status_);
  queue.remove();
}

}  // namespace headrace::door
