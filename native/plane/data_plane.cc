#include "plane/data_plane.h"

#include <algorithm>
#include <utility>

#include "plane/exchanges.h"
#include "plane/talks.h"

namespace headrace::plane {

DataPlane::DataPlane(std::vector<double> latency_bounds, std::size_t stream_window, TellError tell)
    : context_(std::move(latency_bounds), stream_window, std::move(tell)) {}

std::shared_ptr<Exchange> DataPlane::open(Method method, const CallInfo& info, Responder& responder) {
  if (method == Method::kPredict || method == Method::kModelInfer) {
    return std::make_shared<PredictionExchange>(context_, method, info, responder);
  }
  return std::make_shared<QuestionExchange>(context_, method, info, responder);
}

std::shared_ptr<Conversation> DataPlane::converse(Method method, const CallInfo& info, Stream& stream) {
  // Held while it is made: it sees that the server is closing, or is seen by `drain`.
  const std::lock_guard lock(mutex_);
  std::shared_ptr<Talk> talk = method == Method::kPredictStream ? predict_talk(context_, info, stream)
                                                                 : infer_talk(context_, info, stream);
  if (talks_.size() >= swept_at_) forget_ended();
  talks_.push_back(talk);
  return talk;
}

void DataPlane::drain() {
  std::vector<std::weak_ptr<Talk>> talks;
  {
    const std::lock_guard lock(mutex_);
    context_.is_closing = true;
    talks.swap(talks_);
  }
  for (const std::weak_ptr<Talk>& each : talks) {
    if (const std::shared_ptr<Talk> talk = each.lock()) talk->drain();
  }
}

void DataPlane::forget_ended() {
  talks_.erase(std::remove_if(talks_.begin(), talks_.end(), [](const auto& talk) { return talk.expired(); }),
               talks_.end());
  swept_at_ = std::max<std::size_t>(64, 2 * talks_.size());
}

}  // namespace headrace::plane
