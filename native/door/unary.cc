#include "door/unary.h"

#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "door/metadata.h"
#include "door/slices.h"

namespace headrace::door {
namespace {

class Refusal final : public grpc::ServerUnaryReactor {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

class Answering final : public grpc::ServerUnaryReactor, public plane::Responder {
 public:
  Answering(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method,
            grpc::CallbackServerContext& caller, const grpc::ByteBuffer& request, grpc::ByteBuffer& response)
      : onward_(onward), admission_(admission), method_(method), caller_(caller), request_(request),
        response_(response), exchange_(plane.open(method, info_of(caller), *this)) {}

  ~Answering() override { admission_.leave(); }

  void start() { exchange_->start(bytes_of(request_)); }

  // From the plane, on any thread.  After `Finish` gRPC may end the call, and this object, at any moment.

  void respond(plane::Block response) noexcept override {
    response_ = message_of(std::move(response));
    is_answered_ = true;
    caller_.AddTrailingMetadata(kRequestId, std::string(exchange_->request_id()));
    Finish(grpc::Status::OK);
  }

  void fail(const plane::Status& status) noexcept override {
    caller_.AddTrailingMetadata(kRequestId, std::string(exchange_->request_id()));
    Finish(status_of(status));
  }

  void pass() noexcept override {
    {
      const std::lock_guard<std::mutex> lock(cancelling_);
      passing_.emplace(*this);
      if (is_cancelled_) passing_->cancel();
    }
    passing_->start();
  }

  // From gRPC.

  void OnCancel() override {
    exchange_->cancel();
    const std::lock_guard<std::mutex> lock(cancelling_);
    is_cancelled_ = true;
    if (passing_) passing_->cancel();
  }

  void OnDone() override {
    if (is_answered_) exchange_->sent();
    delete this;
  }

  // Neither of the two waits for anything: without this each call costs the wake of a thread of gRPC's executor.
  bool InternalInlineable() override { return true; }

 private:
  class Passing final : public grpc::ClientUnaryReactor {
   public:
    explicit Passing(Answering& call) : call_(call) {}

    void start() {
      const std::string path = "/" + std::string(plane::kMethodNames[static_cast<std::size_t>(call_.method_)]);
      call_.onward_.prepare(call_.caller_, context_);
      call_.onward_.stub().PrepareUnaryCall(&context_, path, {}, &call_.request_, &call_.response_, this);
      StartCall();
    }

    void cancel() { context_.TryCancel(); }

    void OnDone(const grpc::Status& status) override {
      tell_initial(context_, call_.caller_);
      call_.Finish(call_.onward_.pass_on(status, context_, call_.caller_));
    }

   private:
    Answering& call_;
    grpc::ClientContext context_;
  };

  Onward& onward_;
  Admission& admission_;
  const plane::Method method_;
  grpc::CallbackServerContext& caller_;
  const grpc::ByteBuffer& request_;
  grpc::ByteBuffer& response_;
  const std::shared_ptr<plane::Exchange> exchange_;
  bool is_answered_ = false;  // set before `Finish`, read after what that leads to
  std::mutex cancelling_;
  bool is_cancelled_ = false;
  std::optional<Passing> passing_;
};

}  // namespace

plane::CallInfo info_of(const grpc::CallbackServerContext& caller) {
  plane::CallInfo info;
  if (const gpr_timespec due = caller.raw_deadline(); gpr_time_cmp(due, gpr_inf_future(due.clock_type)) != 0) {
    // What is left of it, on the clock of the plane.
    const gpr_timespec left = gpr_time_sub(due, gpr_now(due.clock_type));
    const double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    info.deadline = now + static_cast<double>(left.tv_sec) + 1e-9 * static_cast<double>(left.tv_nsec);
  }
  info.request_id = value_of(caller, kRequestId);
  info.traceparent = value_of(caller, "traceparent");
  info.tracestate = value_of(caller, "tracestate");
  return info;
}

grpc::ServerUnaryReactor* answer(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method,
                                 grpc::CallbackServerContext& caller, const grpc::ByteBuffer& request,
                                 grpc::ByteBuffer& response) {
  if (const auto refusal = admission.enter(caller)) return new Refusal(*refusal);
  // Who leaves before his message has come is told to us as one who has sent none; nothing may be passed on then.
  if (!request.Valid()) {
    admission.leave();
    return new Refusal(grpc::Status(grpc::StatusCode::CANCELLED, "the caller left before the request had come"));
  }
  if (admission.is_too_large(request)) {
    admission.leave();
    return new Refusal(refuse(caller, admission.too_large()));
  }
  auto* call = new Answering(plane, onward, admission, method, caller, request, response);
  call->start();
  return call;
}

}  // namespace headrace::door
