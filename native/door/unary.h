// A call of the data plane that has one request and one answer.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "door/admission.h"
#include "door/onward.h"
#include "plane/plane.h"

namespace headrace::door {

// What the plane is told of a call besides its messages; the text lies in the call's metadata.
plane::CallInfo info_of(const grpc::CallbackServerContext& caller);

grpc::ServerUnaryReactor* answer(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method,
                                 grpc::CallbackServerContext& caller, const grpc::ByteBuffer& request,
                                 grpc::ByteBuffer& response);

}  // namespace headrace::door
