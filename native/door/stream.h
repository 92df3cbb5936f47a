// A stream of the data plane: the plane asks for messages and writes answers; here they meet gRPC.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include "door/admission.h"
#include "door/onward.h"
#include "plane/plane.h"

namespace headrace::door {

grpc::ServerGenericBidiReactor* converse(plane::Plane& plane, Onward& onward, Admission& admission,
                                         plane::Method method, grpc::CallbackServerContext& caller);

}  // namespace headrace::door
