// A call of the data plane that has one request and one answer.
#pragma once

#include "door/admission.h"
#include "door/onward.h"
#include "door/served.h"
#include "plane/plane.h"

namespace headrace::door {

// What the plane is told of a call besides its messages; the text lies in the call's metadata.
plane::CallInfo info_of(const Caller& caller);

void answer(plane::Plane& plane, Onward& onward, Admission& admission, plane::Method method, Served& call);

}  // namespace headrace::door
