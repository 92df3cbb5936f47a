#include "plane/prediction.h"

#include <algorithm>
#include <utility>

#include "batching/clock.h"
#include "plane/context.h"
#include "plane/match.h"
#include "plane/statuses.h"
#include "plane/wire/open_inference.h"
#include "plane/wire/predict.h"

namespace headrace::plane {
namespace {

bool is_predict(Form form) { return form == Form::kPredict || form == Form::kPredictStream; }

}  // namespace

std::optional<PassReason> Prediction::begin(const Context& context, Form form, Bytes message,
                                            const std::vector<Piece>& request, double due_at,
                                            std::string_view stream_id) {
  context_ = &context;
  message_ = std::move(message);
  const wire::Reader reader(request);
  if (!(is_predict(form) ? wire::read_predict(reader, question_) : wire::read_infer(reader, question_))) {
    return PassReason::kRequest;
  }
  route_ = context.signpost.find(question_.model, question_.version);
  if (!route_) return PassReason::kName;
  const Version& served = *route_->version;
  std::vector<std::size_t> outputs;
  if (!choose_outputs(question_, served, outputs) || !match(question_, served, *this)) return PassReason::kSignature;
  answer_.begin(form, served, is_predict(form) ? stream_id : question_.id, outputs, question_.is_raw);
  priority = question_.priority;
  deadline = due_at;
  if (question_.timeout_seconds) {
    deadline = std::min(deadline, batching::steady_seconds() + *question_.timeout_seconds);
  }
  const std::optional<batching::Refusal> refusal = served.batcher->submit(shared_from_this());
  if (!refusal) {
    is_admitted_ = true;
    if (wants_to_leave_) settle_departure();
    return std::nullopt;
  }
  if (refusal->kind == batching::Refusal::Kind::kClosed) return PassReason::kLeft;
  refused(*refusal);
  return std::nullopt;
}

void Prediction::leave() {
  wants_to_leave_ = true;
  if (is_admitted_) settle_departure();
}

void Prediction::was_sent() const {
  route_->version->batcher->sent(batching::steady_seconds() - timing_.finished_at);
}

void Prediction::settle_departure() {
  // Of two who come here at once, the second is too late.
  if (route_->version->batcher->leave(*this) != batching::Departure::kTooLate) has_left();
}

void Prediction::take(const batching::Share& share) noexcept { answer_.take(share); }

void Prediction::answered(const batching::Timing& timing) noexcept {
  timing_ = timing;
  const double respond_seconds = batching::steady_seconds() - timing.finished_at;
  Block message = answer_.finish(timing, respond_seconds);
  if (message.size() == 0) return must_pass(PassReason::kOutput);
  route_->version->batcher->meters().responded(respond_seconds);
  has_answer(std::move(message));
}

void Prediction::refused(const batching::Refusal& refusal) noexcept {
  switch (refusal.kind) {
    case batching::Refusal::Kind::kClosed: return must_pass(PassReason::kLeft);
    case batching::Refusal::Kind::kError: return has_failed(context_->tell_error(refusal));
    default: return has_failed(tell(refusal));
  }
}

Status Prediction::tell(const batching::Refusal& refusal) const { return status_of(refusal, route_->version->name); }

}  // namespace headrace::plane
