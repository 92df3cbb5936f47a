// Calls that end: collected while a lock is held, told when it is not.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "batching/call.h"
#include "batching/meters.h"

namespace headrace::batching {

class Endings {
 public:
  struct Answer {
    std::shared_ptr<Call> call;
    Timing timing;
    Answered counted;
  };
  struct Refused {
    std::shared_ptr<Call> call;
    Refusal refusal;
    double seconds;  // since its admission
  };

  // Counts everything, then tells everyone.  With no lock held.
  void tell(Meters& meters);

  std::vector<Answer> answered;
  std::vector<Refused> refused;
  // Calls that have left: kept until no lock is held, because whoever lets go of a call last destroys it.
  std::vector<std::shared_ptr<Call>> forgotten;
  // Whom to tell that nothing is in flight any more.
  std::vector<std::function<void()>> idle_acts;
};

}  // namespace headrace::batching
