// An outcome as one JSON object.
#pragma once

#include <string>

#include "run.h"

namespace load {

std::string report(const Options& options, const Outcome& outcome);

}  // namespace load
