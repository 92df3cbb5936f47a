#include "door/stream.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "door/asked.h"
#include "door/metadata.h"
#include "door/slices.h"
#include "door/unary.h"

namespace headrace::door {
namespace {

using grpc::ByteBuffer;

// One message on its way to the complete server; keeps itself until it has ended.
class Part final : public AskedOnce, public plane::PassedCall {
 public:
  Part(const Onward& onward, plane::Bytes request, std::shared_ptr<plane::Passage> passage)
      : onward_(onward), request_(message_of(request)), passage_(std::move(passage)) {}

  static std::shared_ptr<Part> start(Onward& onward, Queue& queue, const Caller& caller, plane::Method method,
                                     plane::Bytes request, double deadline, std::shared_ptr<plane::Passage> passage) {
    auto part = std::make_shared<Part>(onward, std::move(request), std::move(passage));
    part->itself_ = part;
    onward.prepare(caller, part->context_);
    part->context_.AddMetadata(std::string(kPart), "1");
    if (std::isfinite(deadline)) part->context_.set_deadline(due_at(deadline));
    const std::string path = "/" + std::string(plane::kMethodNames[static_cast<std::size_t>(method)]);
    part->AskedOnce::start(onward.stub(), queue, part->context_, path, part->request_, part->response_);
    return part;
  }

  void cancel() noexcept override { context_.TryCancel(); }

  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<Part> itself = std::move(itself_);
    if (status.ok()) {
      passage_->answered(bytes_of(response_));
    } else {
      passage_->failed(onward_.described(status, context_));
    }
    passage_.reset();
  }

 private:
  static std::chrono::system_clock::time_point due_at(double deadline) {
    const double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    return std::chrono::system_clock::now() +
           std::chrono::duration_cast<std::chrono::system_clock::duration>(std::chrono::duration<double>(deadline - now));
  }

  const Onward& onward_;
  const ByteBuffer request_;
  ByteBuffer response_;
  grpc::ClientContext context_;
  std::shared_ptr<plane::Passage> passage_;
  std::shared_ptr<Part> itself_;
};

class Streaming final : public Reactor, public plane::Stream {
 public:
  Streaming(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method,
            Served& call)
      : Reactor(call), onward_(onward), admission_(admission), caller_(call.caller()),
        conversation_(plane.converse(method, info_of(caller_), *this)) {}

  ~Streaming() override { admission_.leave(); }

  void start() { conversation_->start(); }

  // From the plane, on any thread.  After `Finish` gRPC may end the call, and this object, at any moment.

  void read() noexcept override { StartRead(&received_); }

  void write(plane::Block message) noexcept override {
    to_write_ = message_of(std::move(message));
    StartWrite(&to_write_);
  }

  void finish(const plane::Status& status) noexcept override {
    caller_.AddTrailingMetadata("x-request-id", std::string(conversation_->request_id()));
    Finish(status_of(status));
  }

  std::shared_ptr<plane::PassedCall> pass(plane::Method method, plane::Bytes request, double deadline,
                                          std::shared_ptr<plane::Passage> passage) noexcept override {
    return Part::start(onward_, queue(), caller_, method, std::move(request), deadline, std::move(passage));
  }

  // From gRPC.

  void OnReadDone(bool ok) override {
    if (const plane::Status* refusal = ok ? admission_.refusal_of(outcome()) : nullptr) {
      received_.Clear();
      conversation_->stop(*refusal);
    } else if (ok) {
      const plane::Bytes message = bytes_of(received_);
      received_.Clear();
      queue().has_brought_request();
      conversation_->has_read(message);
    } else {
      conversation_->has_read(std::nullopt);
    }
  }

  void OnWriteDone(bool ok) override { conversation_->has_written(ok); }

  void OnCancel() override { conversation_->cancel(); }

  void OnDone() override { delete this; }

 private:
  Onward& onward_;
  Admission& admission_;
  Caller& caller_;
  const std::shared_ptr<plane::Conversation> conversation_;
  ByteBuffer received_;
  ByteBuffer to_write_;
};

}  // namespace

void converse(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method, Served& call) {
  if (const auto refusal = admission.enter(call.caller())) {
    turn_away(call, *refusal);
  } else {
    (new Streaming(plane, onward, admission, method, call))->start();
  }
}

}  // namespace headrace::door
