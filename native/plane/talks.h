// The two kinds of stream: PredictStream, whose answers come as they finish, each with its request's id, and
// ModelStreamInfer, whose answers come in the order of the requests.
#pragma once

#include <memory>

#include "plane/talk.h"

namespace headrace::plane {

std::shared_ptr<Talk> predict_talk(const Context& context, const CallInfo& info, Stream& stream);
std::shared_ptr<Talk> infer_talk(const Context& context, const CallInfo& info, Stream& stream);

}  // namespace headrace::plane
