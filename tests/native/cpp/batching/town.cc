#include "batching/town.h"

#include <algorithm>
#include <vector>

namespace headrace::batching {
namespace {

struct Running {
  std::unique_ptr<Batch> batch;
  double started_at = 0;
  double ends_at = kNever;
};

struct Guest {
  std::shared_ptr<ScriptedCall> call;
  double wanted_at;  // by its own clock
};

}  // namespace

Town::Found Town::live(double calls_per_second, double seconds, unsigned seed) const {
  Bench bench(limits(max_batch_rows), num_lanes);
  std::mt19937_64 random(seed);
  std::exponential_distribution<double> until_next(calls_per_second);
  std::normal_distribution<double> noise(0, spread);
  std::vector<Running> running(num_lanes);
  std::vector<Guest> guests;
  Found found;
  found.seconds = seconds;
  const double begin = bench.now, end = begin + seconds;
  double next_call = begin + until_next(random);
  const auto start_lanes = [&] {
    for (std::size_t lane = 0; lane < num_lanes; ++lane) {
      Running& here = running[lane];
      if (here.batch != nullptr) continue;
      here.batch = bench.lanes->take(lane, 0);
      if (here.batch == nullptr) {
        found.has_idled = found.has_idled || bench.batcher->waiting_rows() > 0;
        continue;
      }
      const double change = bench.now > (begin + end) / 2 ? slowdown : 1;
      const double takes = (seconds_of_a_run + seconds_of_a_row * static_cast<double>(here.batch->rows)) * change *
                           std::exp(noise(random));
      here.started_at = bench.now;
      here.ends_at = bench.now + takes;
      found.busy_seconds += takes;
    }
  };
  while (true) {
    const auto first = std::min_element(running.begin(), running.end(),
                                        [](const Running& a, const Running& b) { return a.ends_at < b.ends_at; });
    if (std::min(first->ends_at, next_call) >= end) break;
    if (first->ends_at <= next_call) {
      bench.now = first->ends_at;
      const std::int64_t answers = first->batch->rows;
      bench.settle(std::move(first->batch), bench.now - first->started_at);
      for (std::int64_t i = 0; i < answers; ++i) bench.batcher->sent(seconds_back);
      first->batch = nullptr;
      first->ends_at = kNever;
    } else {
      bench.now = next_call;
      next_call += until_next(random);
      ++found.num_calls;
      // The server counts from when it has read the call.
      auto made = call(found.num_calls, 1, 0, bench.now + deadline_seconds);
      if (bench.batcher->submit(made)) {
        ++found.num_refused;
      } else {
        guests.push_back({std::move(made), bench.now + deadline_seconds - seconds_in});
      }
    }
    start_lanes();
  }
  for (Running& here : running) {
    if (here.batch != nullptr) bench.settle(std::move(here.batch));
  }
  for (const Guest& guest : guests) {
    if (guest.call->refusal) {
      ++found.num_expired;
    } else if (guest.call->timing) {
      ++(guest.call->timing->finished_at + seconds_back <= guest.wanted_at ? found.num_good : found.num_late);
    }
  }
  return found;
}

}  // namespace headrace::batching
