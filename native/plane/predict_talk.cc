// PredictStream: answers come as they finish, each with the id of its request.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "batching/clock.h"
#include "plane/statuses.h"
#include "plane/talks.h"
#include "plane/wire/predict.h"
#include "plane/wire/stream_answers.h"

namespace headrace::plane {
namespace {

class PredictTalk;

// One request of the stream; also told how its call ended when it was passed on.
class Turn final : public Prediction, public Passage {
 public:
  Turn(std::shared_ptr<PredictTalk> talk, std::uint64_t number) : talk_(std::move(talk)), number_(number) {}

  void start(Bytes message);
  // Its time is over.  The batcher answers what still waits; what is being run is run to its end, for nobody.
  void expire() { refuse(late()); }

  void answered(Bytes response) noexcept override;
  void failed(const Status& status) noexcept override;

 private:
  void has_answer(Block message) noexcept override;
  void has_failed(const Status& status) noexcept override;
  void must_pass(PassReason reason) noexcept override;
  void has_left() noexcept override {}
  Status tell(const batching::Refusal& refusal) const override;
  void refuse(const Status& status);
  bool is_late() const { return batching::steady_seconds() >= due_at_; }
  Status late() const { return timed_out(request_.timeout_seconds.value_or(0)); }

  const std::shared_ptr<PredictTalk> talk_;
  const std::uint64_t number_;
  Bytes message_;
  wire::StreamRequest request_;
  double due_at_ = std::numeric_limits<double>::infinity();
};

class PredictTalk final : public Talk {
 public:
  PredictTalk(const Context& context, const CallInfo& info, Stream& stream)
      : Talk(context, Method::kPredictStream, Method::kPredict, info, stream) {}

 private:
  friend class Turn;
  bool is_in_order() const override { return false; }
  void ask(Number number, Bytes message) override {
    std::make_shared<Turn>(std::static_pointer_cast<PredictTalk>(shared_from_this()), number)
        ->start(std::move(message));
  }
  void expire(Prediction& prediction) override { static_cast<Turn&>(prediction).expire(); }
};

void Turn::start(Bytes message) {
  message_ = std::move(message);
  if (!wire::read_stream_request(wire::Reader(message_.pieces), request_)) {
    return talk_->refuse_all(number_, invalid_spec("", "the bytes are not a message of the type that this method takes"));
  }
  if (!talk_->take_id(request_.id)) {
    return refuse(invalid_spec("id", quote(request_.id) + " is the id of a request that is still under way"));
  }
  due_at_ = talk_->deadline();
  if (request_.timeout_seconds) {
    if (*request_.timeout_seconds <= 0) return refuse(invalid_spec("timeout", "must be above 0"));
    due_at_ = std::min(due_at_, batching::steady_seconds() + *request_.timeout_seconds);
  }
  // The deadline of the whole stream is kept by the door.
  const double told_at = request_.timeout_seconds ? due_at_ : batching::kNever;
  if (!talk_->keep(number_, shared_from_this(), told_at)) return;
  const std::optional<PassReason> reason =
      begin(talk_->context(), Form::kPredictStream, {message_.owner, {}}, request_.request, due_at_, request_.id);
  if (reason) must_pass(*reason);
}

void Turn::refuse(const Status& status) {
  talk_->answer(number_, wire::predict_refusal(request_.id, status), std::string(request_.id));
}

void Turn::has_answer(Block message) noexcept {
  if (is_late()) return refuse(late());
  talk_->answer(number_, std::move(message), std::string(request_.id));
}

void Turn::has_failed(const Status& status) noexcept { refuse(is_late() ? late() : status); }

Status Turn::tell(const batching::Refusal& refusal) const {
  return refusal.kind == batching::Refusal::Kind::kExpired ? late() : Prediction::tell(refusal);
}

void Turn::must_pass(PassReason reason) noexcept {
  talk_->pass(number_, reason, {message_.owner, request_.request}, due_at_,
              std::static_pointer_cast<Turn>(shared_from_this()));
}

void Turn::answered(Bytes response) noexcept {
  talk_->answer(number_, wire::predict_answer(request_.id, response.pieces), std::string(request_.id));
}

void Turn::failed(const Status& status) noexcept {
  const bool is_ours = status.details.empty() && status.code == static_cast<int>(Code::kDeadlineExceeded);
  refuse(is_ours ? late() : status);
}

}  // namespace

std::shared_ptr<Talk> predict_talk(const Context& context, const CallInfo& info, Stream& stream) {
  return std::make_shared<PredictTalk>(context, info, stream);
}

}  // namespace headrace::plane
