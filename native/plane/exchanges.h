// The unary calls: one prediction, and questions that are answered at once.
#pragma once

#include "plane/call_record.h"
#include "plane/context.h"
#include "plane/exchange.h"
#include "plane/prediction.h"

namespace headrace::plane {

// Predict, ModelInfer
class PredictionExchange final : public Exchange, public Prediction {
 public:
  PredictionExchange(const Context& context, Method method, const CallInfo& info, Responder& responder);

  void start(Bytes request) noexcept override;
  void cancel() noexcept override { leave(); }
  void sent() noexcept override { was_sent(); }
  std::string_view request_id() const noexcept override { return record_.request_id(); }

 private:
  void has_answer(Block message) noexcept override;
  void has_failed(const Status& status) noexcept override;
  void must_pass(PassReason reason) noexcept override;
  void has_left() noexcept override;

  const Context& context_;
  Responder& responder_;
  CallRecord record_;
};

// ServerLive, ServerReady, ModelReady, ModelMetadata
class QuestionExchange final : public Exchange {
 public:
  QuestionExchange(const Context& context, Method method, const CallInfo& info, Responder& responder);

  void start(Bytes request) noexcept override;
  void cancel() noexcept override {}
  void sent() noexcept override {}
  std::string_view request_id() const noexcept override { return record_.request_id(); }

 private:
  void answer_flag(bool flag);
  void answer_about_model(const Bytes& request);
  void answer(Block message);
  void pass(PassReason reason);

  const Context& context_;
  Responder& responder_;
  CallRecord record_;
};

}  // namespace headrace::plane
