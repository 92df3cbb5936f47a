// Where the time of a call went, written in the words of both protocols.
#pragma once

#include <cstddef>

#include "batching/call.h"
#include "plane/wire/writer.h"

namespace headrace::plane::wire {

// Room enough for either.
inline constexpr std::size_t kLargestTiming = 320;

// PredictResponse.timing
void write_predict_timing(Writer& writer, const batching::Timing& timing, double respond_seconds);
// Entries of ModelInferResponse.parameters
void write_infer_timing(Writer& writer, const batching::Timing& timing, double respond_seconds);

}  // namespace headrace::plane::wire
