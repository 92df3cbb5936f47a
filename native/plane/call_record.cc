#include "plane/call_record.h"

#include <algorithm>
#include <utility>

#include "batching/clock.h"

namespace headrace::plane {
namespace {

constexpr std::size_t kLongestRequestId = 128;

bool is_request_id(std::string_view text) {
  return !text.empty() && text.size() <= kLongestRequestId &&
         std::all_of(text.begin(), text.end(), [](char each) { return each >= ' ' && each <= '~'; });
}

std::string new_request_id() {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::uint64_t bits = random_bits();
  std::string id(16, '0');
  for (char& digit : id) {
    digit = kDigits[bits & 0xF];
    bits >>= 4;
  }
  return id;
}

}  // namespace

std::string request_id_of(std::string_view told) {
  return is_request_id(told) ? std::string(told) : new_request_id();
}

CallRecord::CallRecord(const Context& context, Method method, const CallInfo& info)
    : context_(context),
      method_(method),
      deadline_(info.deadline),
      started_at_(batching::steady_seconds()),
      request_id_(request_id_of(info.request_id)),
      span_(context.spans.begin(method, info)) {
  context_.meters.began();
}

void CallRecord::ended(int code) { ended(code, {}, {}); }

void CallRecord::ended(int code, std::string_view version, const batching::Timing& timing) {
  context_.meters.ended(method_, code, batching::steady_seconds() - started_at_);
  if (!span_) return;
  span_->code = code;
  span_->version = version;
  span_->timing = timing;
  context_.spans.end(*std::move(span_));
}

void CallRecord::passed(PassReason reason) { context_.meters.passed(method_, reason); }

int CallRecord::code_of_departure() const {
  const bool is_late = batching::steady_seconds() >= deadline_;
  return static_cast<int>(is_late ? Code::kDeadlineExceeded : Code::kCancelled);
}

}  // namespace headrace::plane
