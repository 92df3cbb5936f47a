#include "door/unary.h"

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "door/asked.h"
#include "door/metadata.h"
#include "door/slices.h"

namespace headrace::door {
namespace {

class Answering final : public Reactor, public plane::Responder {
 public:
  Answering(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method, Served& call)
      : Reactor(call), plane_(plane), onward_(onward), admission_(admission), method_(method), caller_(call.caller()) {
    StartRead(&request_);
  }

  ~Answering() override { admission_.leave(); }

  // From the plane, on any thread.  After `Finish` gRPC may end the call, and this object, at any moment.

  void respond(plane::Block response) noexcept override {
    response_ = message_of(std::move(response));
    is_answered_ = true;
    caller_.AddTrailingMetadata(kRequestId, std::string(exchange_->request_id()));
    StartWriteAndFinish(&response_, grpc::Status::OK);
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
    passing_->begin();
  }

  // From gRPC.

  void OnReadDone(bool ok) override {
    // Who leaves before his message has come has sent none; nothing may be passed on then.
    if (!ok) return Finish({grpc::StatusCode::CANCELLED, "the caller left before the request had come"});
    if (const plane::Status* refusal = admission_.refusal_of(outcome())) return Finish(refuse(caller_, *refusal));
    queue().has_brought_request();
    exchange_ = plane_.open(method_, info_of(caller_), *this);
    // It may end before this returns, and the call with it.
    const std::shared_ptr<plane::Exchange> exchange = exchange_;
    exchange->start(bytes_of(request_));
  }

  void OnCancel() override {
    if (exchange_ != nullptr) exchange_->cancel();
    const std::lock_guard<std::mutex> lock(cancelling_);
    is_cancelled_ = true;
    if (passing_) passing_->cancel();
  }

  void OnDone() override {
    if (is_answered_ && is_sent()) exchange_->sent();
    delete this;
  }

 private:
  class Passing final : public AskedOnce {
   public:
    explicit Passing(Answering& call) : call_(call) {}

    void begin() {
      const std::string path = "/" + std::string(plane::kMethodNames[static_cast<std::size_t>(call_.method_)]);
      call_.onward_.prepare(call_.caller_, context_);
      start(call_.onward_.stub(), call_.queue(), context_, path, call_.request_, call_.response_);
    }

    void cancel() { context_.TryCancel(); }

    void OnDone(const grpc::Status& status) override {
      tell_initial(context_, call_.caller_);
      const grpc::Status told = call_.onward_.pass_on(status, context_, call_.caller_);
      if (told.ok()) {
        call_.StartWriteAndFinish(&call_.response_, told);
      } else {
        call_.Finish(told);
      }
    }

   private:
    Answering& call_;
    grpc::ClientContext context_;
  };

  plane::Plane& plane_;
  Onward& onward_;
  Admission& admission_;
  const plane::Method method_;
  Caller& caller_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
  std::shared_ptr<plane::Exchange> exchange_;  // null before the request has come
  bool is_answered_ = false;  // set before `Finish`, read after what that leads to
  std::mutex cancelling_;
  bool is_cancelled_ = false;
  std::optional<Passing> passing_;
};

}  // namespace

plane::CallInfo info_of(const Caller& caller) {
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

void answer(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method, Served& call) {
  if (const auto refusal = admission.enter(call.caller())) {
    turn_away(call, *refusal);
  } else {
    new Answering(plane, onward, admission, method, call);
  }
}

}  // namespace headrace::door
