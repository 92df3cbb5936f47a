// A stream of the data plane: the plane asks for messages and writes answers; here they meet gRPC.
#pragma once

#include "door/admission.h"
#include "door/onward.h"
#include "door/served.h"
#include "plane/plane.h"

namespace headrace::door {

void converse(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method, Served& call);

}  // namespace headrace::door
