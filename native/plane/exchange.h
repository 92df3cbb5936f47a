// One unary call: a request and how it ends.
//
// The door makes an exchange, keeps it, and starts it; from then on the exchange ends it, on any thread and possibly
// before `start` returns:
//
//     auto exchange = plane.open(Method::kPredict, info, responder);   // does no work yet
//     this->exchange = exchange;                                       // so that `cancel` can reach it
//     exchange->start(std::move(request));
#pragma once

#include <limits>
#include <memory>
#include <string_view>

#include "plane/bytes.h"
#include "plane/status.h"

namespace headrace::plane {

// The methods that the plane answers.  The order is that of `kMethodNames` in plane.h.
enum class Method {
  kPredict,
  kModelInfer,
  kServerLive,
  kServerReady,
  kModelReady,
  kModelMetadata,
  kPredictStream,
  kModelStreamInfer,
};

// What the door knows of a call besides its messages.  Text is read during `open` only; absent is empty.
struct CallInfo {
  // std::chrono::steady_clock seconds.
  double deadline = std::numeric_limits<double>::infinity();
  std::string_view request_id;   // metadata x-request-id
  std::string_view traceparent;  // W3C Trace Context
  std::string_view tracestate;
};

// The door's side of a unary call.  Exactly one of these is called for each exchange that was started, once, on any
// thread, with no lock held; afterwards the exchange does not touch the responder again.
class Responder {
 public:
  virtual ~Responder() = default;

  virtual void respond(Block response) noexcept = 0;
  virtual void fail(const Status& status) noexcept = 0;
  // Not for the plane: the untouched request goes to the complete server.  Nothing was counted.
  virtual void pass() noexcept = 0;
};

class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual void start(Bytes request) noexcept = 0;
  // The caller has gone, or the deadline is over.  The responder is still told of the end: by `fail`, if by nothing else.
  virtual void cancel() noexcept = 0;
  // The network has what was responded.
  virtual void sent() noexcept = 0;
  // Belongs into the trailing metadata of what the plane answers, under x-request-id.
  virtual std::string_view request_id() const noexcept = 0;
};

}  // namespace headrace::plane
