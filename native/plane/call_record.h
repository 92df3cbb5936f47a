// What is noted of one call while it lasts: its id, its span, and how it is counted.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "plane/call_meters.h"
#include "plane/context.h"
#include "plane/exchange.h"
#include "plane/spans.h"

namespace headrace::plane {

// What a caller calls his call, or a new id where that is none.
std::string request_id_of(std::string_view told);

class CallRecord {
 public:
  // It begins now.
  CallRecord(const Context& context, Method method, const CallInfo& info);

  std::string_view request_id() const { return request_id_; }
  Method method() const { return method_; }
  double deadline() const { return deadline_; }

  // Exactly one of these ends it.
  void ended(int code);
  void ended(int code, std::string_view version, const batching::Timing& timing);
  void passed(PassReason reason);

  // The code under which a call ends whose caller has gone.
  int code_of_departure() const;

 private:
  const Context& context_;
  const Method method_;
  const double deadline_;
  const double started_at_;
  std::string request_id_;
  std::optional<Span> span_;
};

}  // namespace headrace::plane
