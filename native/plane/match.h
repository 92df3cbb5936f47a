// Whether a request fits the signature of a version.
#pragma once

#include "batching/call.h"
#include "plane/question.h"
#include "plane/routes.h"

namespace headrace::plane {

// Moves the inputs of `question` into `call`, in the order of the signature.  False when the request does not fit, and
// then the complete server says why.  Costs a pass over the elements of inputs that must be finite, nothing for others.
bool match(Question& question, const Version& version, batching::Call& call);

// The place of each asked output in the signature; all when none is asked for.  Each once, in the order of the request.
// False when one is not there.
bool choose_outputs(const Question& question, const Version& version, std::vector<std::size_t>& chosen);

}  // namespace headrace::plane
