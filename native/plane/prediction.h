// One prediction on its way from the bytes of a request, through a batcher, to the bytes of an answer.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "batching/batcher.h"
#include "plane/answer.h"
#include "plane/bytes.h"
#include "plane/call_meters.h"
#include "plane/question.h"
#include "plane/routes.h"
#include "plane/status.h"

namespace headrace::plane {

class Context;

class Prediction : public batching::Call, public std::enable_shared_from_this<Prediction> {
 public:
  // Begins it, or says why the complete server has to answer.  After nothing was returned, exactly one of the endings
  // below follows, on any thread, perhaps before this returns.  `request` is what `message` or one of its fields holds.
  std::optional<PassReason> begin(const Context& context, Form form, Bytes message, const std::vector<Piece>& request,
                                  double deadline, std::string_view stream_id);

  // The caller has gone: it ends with `left`, unless it ends otherwise just now.  Only after `begin` was called.
  void leave();

  // The network has the answer.
  void was_sent() const;

  const Version* version() const { return route_ ? route_->version.get() : nullptr; }
  const batching::Timing& timing() const { return timing_; }
  // Of ModelInfer; lies in the message.
  std::string_view id() const { return question_.id; }

 protected:
  // The endings.
  virtual void has_answer(Block message) noexcept = 0;
  virtual void has_failed(const Status& status) noexcept = 0;
  virtual void must_pass(PassReason reason) noexcept = 0;
  virtual void has_left() noexcept = 0;

  // How a refusal of the batcher is told.
  virtual Status tell(const batching::Refusal& refusal) const;

 private:
  void take(const batching::Share& share) noexcept override;
  void answered(const batching::Timing& timing) noexcept override;
  void refused(const batching::Refusal& refusal) noexcept override;
  void settle_departure();

  const Context* context_ = nullptr;
  Bytes message_;
  Question question_;
  std::shared_ptr<const Route> route_;
  Answer answer_;
  batching::Timing timing_;
  std::atomic<bool> is_admitted_{false};
  std::atomic<bool> wants_to_leave_{false};
};

}  // namespace headrace::plane
