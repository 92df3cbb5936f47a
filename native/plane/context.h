// What all calls of one plane share.  Outlives them.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "plane/call_meters.h"
#include "plane/routes.h"
#include "plane/spans.h"
#include "plane/status.h"

namespace headrace::plane {

// How an error of whoever ran the model, in a refusal of kError, is told to callers.
using TellError = std::function<Status(const batching::Refusal& refusal)>;

class Context {
 public:
  Context(std::vector<double> latency_bounds, std::size_t stream_window, TellError tell)
      : tell_error(std::move(tell)), window(stream_window), meters(std::move(latency_bounds)) {}

  const TellError tell_error;
  // How many requests of one stream may be under way.
  const std::size_t window;
  Signpost signpost;
  // Whether health says of the whole server that it answers.
  std::atomic<bool> is_serving{false};
  // New calls are passed on, to be refused there.
  std::atomic<bool> is_closing{false};
  mutable CallMeters meters;
  mutable Spans spans;
};

}  // namespace headrace::plane
