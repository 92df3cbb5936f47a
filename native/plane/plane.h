// The data plane: answers predictions, and questions after models, straight from the bytes of their messages.
//
// Knows batchers and bytes; knows neither Python nor gRPC.  What it cannot answer exactly as the complete server would,
// it passes on untouched: so there is one source of truth for everything that can be wrong with a request.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string_view>

#include "plane/conversation.h"
#include "plane/exchange.h"

namespace headrace::plane {

// In the order of `Method`; as a path of gRPC has them after its first slash.
inline constexpr std::array<std::string_view, 8> kMethodNames{
    "headrace.inference.v1.InferenceService/Predict",
    "inference.GRPCInferenceService/ModelInfer",
    "inference.GRPCInferenceService/ServerLive",
    "inference.GRPCInferenceService/ServerReady",
    "inference.GRPCInferenceService/ModelReady",
    "inference.GRPCInferenceService/ModelMetadata",
    "headrace.inference.v1.InferenceService/PredictStream",
    "inference.GRPCInferenceService/ModelStreamInfer",
};

class Plane {
 public:
  virtual ~Plane() = default;

  // A unary call; `responder` outlives its end.
  virtual std::shared_ptr<Exchange> open(Method method, const CallInfo& info, Responder& responder) = 0;
  // A stream; `stream` outlives its end.
  virtual std::shared_ptr<Conversation> converse(Method method, const CallInfo& info, Stream& stream) = 0;
};

}  // namespace headrace::plane
