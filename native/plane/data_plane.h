// The plane as it is: everything put together.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "plane/context.h"
#include "plane/plane.h"
#include "plane/talk.h"

namespace headrace::plane {

class DataPlane final : public Plane {
 public:
  // `latency_bounds` are those of the histogram of calls; `stream_window` is how many requests of one stream may be
  // under way; `tell` is called with no lock held, on the thread of a lane or a timer.
  DataPlane(std::vector<double> latency_bounds, std::size_t stream_window, TellError tell);

  std::shared_ptr<Exchange> open(Method method, const CallInfo& info, Responder& responder) override;
  std::shared_ptr<Conversation> converse(Method method, const CallInfo& info, Stream& stream) override;

  // From when this returns, every new call sees these and no earlier ones.
  void turn(std::shared_ptr<const Routes> routes) { context_.signpost.turn(std::move(routes)); }
  void set_serving(bool is_serving) { context_.is_serving = is_serving; }
  // New calls are passed on, and streams end when what is under way is answered.
  void drain();

  CallMeters& meters() { return context_.meters; }
  Spans& spans() { return context_.spans; }
  const Signpost& signpost() const { return context_.signpost; }

 private:
  void forget_ended();

  Context context_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<Talk>> talks_;
  std::size_t swept_at_ = 64;
};

}  // namespace headrace::plane
