// ModelStreamInfer: answers come in the order of the requests.
#include <string>
#include <utility>

#include "plane/statuses.h"
#include "plane/talks.h"
#include "plane/wire/open_inference.h"
#include "plane/wire/stream_answers.h"

namespace headrace::plane {
namespace {

class InferTalk;

// One request of the stream; also told how its call ended when it was passed on.
class Step final : public Prediction, public Passage {
 public:
  Step(std::shared_ptr<InferTalk> talk, std::uint64_t number) : talk_(std::move(talk)), number_(number) {}

  void start(Bytes message);

  void answered(Bytes response) noexcept override;
  void failed(const Status& status) noexcept override { has_failed(status); }

 private:
  void has_answer(Block message) noexcept override;
  void has_failed(const Status& status) noexcept override;
  void must_pass(PassReason reason) noexcept override;
  void has_left() noexcept override {}

  const std::shared_ptr<InferTalk> talk_;
  const std::uint64_t number_;
  Bytes message_;
  std::string id_;
};

class InferTalk final : public Talk {
 public:
  InferTalk(const Context& context, const CallInfo& info, Stream& stream)
      : Talk(context, Method::kModelStreamInfer, Method::kModelInfer, info, stream) {}

 private:
  friend class Step;
  bool is_in_order() const override { return true; }
  void ask(Number number, Bytes message) override {
    std::make_shared<Step>(std::static_pointer_cast<InferTalk>(shared_from_this()), number)->start(std::move(message));
  }
};

void Step::start(Bytes message) {
  message_ = std::move(message);
  if (!wire::read_id(wire::Reader(message_.pieces), id_)) {
    return talk_->refuse_all(number_, invalid_spec("", "the bytes are not a message of the type that this method takes"));
  }
  if (!talk_->keep(number_, shared_from_this())) return;
  const std::optional<PassReason> reason =
      begin(talk_->context(), Form::kInferStream, {message_.owner, {}}, message_.pieces, talk_->deadline(), {});
  if (reason) must_pass(*reason);
}

void Step::has_answer(Block message) noexcept { talk_->answer(number_, std::move(message)); }

void Step::has_failed(const Status& status) noexcept { talk_->answer(number_, wire::infer_refusal(id_, status)); }

void Step::must_pass(PassReason reason) noexcept {
  talk_->pass(number_, reason, message_, talk_->deadline(), std::static_pointer_cast<Step>(shared_from_this()));
}

void Step::answered(Bytes response) noexcept { talk_->answer(number_, wire::infer_answer(response.pieces)); }

}  // namespace

std::shared_ptr<Talk> infer_talk(const Context& context, const CallInfo& info, Stream& stream) {
  return std::make_shared<InferTalk>(context, info, stream);
}

}  // namespace headrace::plane
