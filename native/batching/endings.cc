#include "batching/endings.h"

namespace headrace::batching {

void Endings::tell(Meters& meters) {
  std::vector<Answered> counted;
  counted.reserve(answered.size());
  for (const Answer& answer : answered) counted.push_back(answer.counted);
  meters.answered(counted);
  for (const Refused& call : refused) {
    if (call.refusal.kind == Refusal::Kind::kClosed) continue;
    meters.ended(call.refusal.outcome, call.seconds);
    if (call.refusal.kind == Refusal::Kind::kExpired) meters.shed("expired");
  }
  for (const Answer& answer : answered) answer.call->answered(answer.timing);
  for (const Refused& call : refused) call.call->refused(call.refusal);
  for (const std::function<void()>& act : idle_acts) act();
}

}  // namespace headrace::batching
