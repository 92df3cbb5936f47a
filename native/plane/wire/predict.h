// headrace.inference.v1.PredictRequest and PredictStreamRequest, read.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "plane/question.h"
#include "plane/wire/reader.h"

namespace headrace::plane::wire {

// False when the message is not one that the plane answers: malformed, wrong, or with values of FP8.
bool read_predict(Reader message, Question& question);

// One message of a PredictStream.
struct StreamRequest {
  std::string_view id;
  // The PredictRequest, not looked into; absent is empty, which is a message too.
  std::vector<Piece> request;
  std::optional<double> timeout_seconds;
  Scratch scratch;
};

// False when the message is malformed.
bool read_stream_request(Reader message, StreamRequest& request);

}  // namespace headrace::plane::wire
