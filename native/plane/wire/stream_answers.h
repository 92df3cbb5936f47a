// Answers of streams that are made of something whole: what the complete server answered, or a refusal.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "plane/bytes.h"
#include "plane/status.h"

namespace headrace::plane::wire {

// PredictStreamResponse around a PredictResponse, and around a google.rpc.Status.
Block predict_answer(std::string_view id, const std::vector<Piece>& response);
Block predict_refusal(std::string_view id, const Status& status);

// ModelStreamInferResponse around a ModelInferResponse, and around a failure.
Block infer_answer(const std::vector<Piece>& response);
Block infer_refusal(std::string_view id, const Status& status);

}  // namespace headrace::plane::wire
