// Passes calls through to the complete server, byte for byte: unary and streams, metadata, deadlines, cancellation,
// statuses with their details.
//
// One message at a time each way: the next is read when the last is on its way.  So a reader who does not read is waited
// for, and costs a message of memory.
#pragma once

#include "door/admission.h"
#include "door/onward.h"
#include "door/served.h"

namespace headrace::door {

void pass(Onward& onward, Admission& admission, Served& call);

}  // namespace headrace::door
