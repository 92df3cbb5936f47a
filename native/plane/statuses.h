// How the complete server tells of what the plane itself decides: the same codes, texts and details.
//
// The other half of rpc/status.py and errors/; a test compares the two.
#pragma once

#include <string>
#include <string_view>

#include "batching/call.h"
#include "plane/status.h"

namespace headrace::plane {

// NoPermit, for kNoPermit and kLate; ExpiredInQueue for kExpired.
Status status_of(const batching::Refusal& refusal, std::string_view version_name);
// A request of a stream took longer than its own timeout, or the stream's deadline, allows.
Status timed_out(double timeout_seconds);
Status draining();
// One field of a request is wrong.
Status invalid_spec(std::string_view field, std::string_view description);
Status cancelled();

// The google.rpc.Status of a status, with or without details.
std::string encode(const Status& status);
// The reason in the ErrorInfo of a google.rpc.Status; empty when there is none.
std::string reason_of(std::string_view details);
// The name of a code, as in grpc.StatusCode.
std::string_view name_of_code(int code);
// As Python shows a text: quoted, with escapes.
std::string quote(std::string_view text);

}  // namespace headrace::plane
