// Passes calls through to the complete server, byte for byte: unary and streams, metadata, deadlines, cancellation,
// statuses with their details.
//
// One message at a time each way: the next is read when the last is on its way.  So a reader who does not read is waited
// for, and costs a message of memory.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include "door/admission.h"
#include "door/onward.h"

namespace headrace::door {

class Passage final : public grpc::CallbackGenericService {
 public:
  // Both outlive the passage.
  Passage(Onward& onward, Admission& admission) : onward_(onward), admission_(admission) {}

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  Onward& onward_;
  Admission& admission_;
};

}  // namespace headrace::door
