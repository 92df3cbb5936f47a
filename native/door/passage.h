// Passes calls through to the complete server, byte for byte: unary and streams, metadata, deadlines, cancellation,
// statuses with their details.
//
// One message at a time each way: the next is read when the last is on its way.  So a reader who does not read is waited
// for, and costs a message of memory.  Readers of what many follow may then read along with the others (relay.h).
#pragma once

#include "door/admission.h"
#include "door/onward.h"
#include "door/relay.h"
#include "door/served.h"

namespace headrace::door {

// `relays` are those of the call's queue.
void pass(Onward& onward, Admission& admission, Relays& relays, Served& call);

}  // namespace headrace::door
