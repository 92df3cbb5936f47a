#include "plane/exchanges.h"

#include <cstring>
#include <utility>

#include "plane/wire/open_inference.h"

namespace headrace::plane {

PredictionExchange::PredictionExchange(const Context& context, Method method, const CallInfo& info,
                                       Responder& responder)
    : context_(context), responder_(responder), record_(context, method, info) {}

void PredictionExchange::start(Bytes request) noexcept {
  if (context_.is_closing) return must_pass(PassReason::kDraining);
  const Form form = record_.method() == Method::kPredict ? Form::kPredict : Form::kInfer;
  const std::vector<Piece> pieces = request.pieces;
  const std::optional<PassReason> reason = begin(context_, form, std::move(request), pieces, record_.deadline(), {});
  if (reason) must_pass(*reason);
}

void PredictionExchange::has_answer(Block message) noexcept {
  record_.ended(static_cast<int>(Code::kOk), version()->name, timing());
  responder_.respond(std::move(message));
}

void PredictionExchange::has_failed(const Status& status) noexcept {
  record_.ended(status.code, version()->name, timing());
  responder_.fail(status);
}

void PredictionExchange::must_pass(PassReason reason) noexcept {
  record_.passed(reason);
  responder_.pass();
}

void PredictionExchange::has_left() noexcept {
  const Status status{record_.code_of_departure(), "the caller has gone", {}};
  record_.ended(status.code, version()->name, timing());
  responder_.fail(status);
}

QuestionExchange::QuestionExchange(const Context& context, Method method, const CallInfo& info, Responder& responder)
    : context_(context), responder_(responder), record_(context, method, info) {}

void QuestionExchange::start(Bytes request) noexcept {
  switch (record_.method()) {
    case Method::kServerLive:
    case Method::kServerReady:
      if (!wire::read_empty(wire::Reader(request.pieces))) return pass(PassReason::kRequest);
      return answer_flag(record_.method() == Method::kServerLive || context_.is_serving);
    default: return answer_about_model(request);
  }
}

void QuestionExchange::answer_about_model(const Bytes& request) {
  const bool is_readiness = record_.method() == Method::kModelReady;
  if (!is_readiness && context_.is_closing) return pass(PassReason::kDraining);
  wire::ModelQuestion question;
  if (!wire::read_model_question(wire::Reader(request.pieces), question)) return pass(PassReason::kRequest);
  const std::shared_ptr<const Route> route = context_.signpost.find(question.model, question.version);
  if (!route) return pass(PassReason::kName);
  if (is_readiness) return answer_flag(context_.is_serving);
  Block message(route->metadata.size());
  if (message.size() > 0) std::memcpy(message.data(), route->metadata.data(), message.size());
  answer(std::move(message));
}

// Each of these responses has one field, a bool with the number 1.
void QuestionExchange::answer_flag(bool flag) {
  Block message(flag ? 2 : 0);
  if (flag) {
    message.data()[0] = std::byte{0x08};
    message.data()[1] = std::byte{0x01};
  }
  answer(std::move(message));
}

void QuestionExchange::answer(Block message) {
  record_.ended(static_cast<int>(Code::kOk));
  responder_.respond(std::move(message));
}

void QuestionExchange::pass(PassReason reason) {
  record_.passed(reason);
  responder_.pass();
}

}  // namespace headrace::plane
