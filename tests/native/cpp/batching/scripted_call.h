// A caller who remembers what he was told.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "batching/batcher.h"

namespace headrace::batching {

// Rows of two INT64 that say whose they are: the caller, then the number of the row.
class ScriptedCall : public Call {
 public:
  ScriptedCall(std::int64_t caller, std::int64_t num_rows, std::int64_t width = 2)
      : values(static_cast<std::size_t>(num_rows * width)), answers(values.size()) {
    for (std::int64_t row = 0; row < num_rows; ++row) {
      values[static_cast<std::size_t>(row * width)] = caller;
      for (std::int64_t i = 1; i < width; ++i) values[static_cast<std::size_t>(row * width + i)] = row;
    }
    Input input;
    input.element = Element::kInt64;
    input.shape = {num_rows, width};
    input.pieces = {{reinterpret_cast<const std::byte*>(values.data()), values.size() * 8}};
    inputs.push_back(input);
    nbytes = values.size() * 8;
  }

  void take(const Share& share) noexcept override {
    const std::lock_guard lock(mutex);
    ++num_takes;
    const Output& output = share.outputs[0];
    std::memcpy(reinterpret_cast<std::byte*>(answers.data()) + static_cast<std::size_t>(share.first) * output.row_bytes,
                output.data + static_cast<std::size_t>(share.row) * output.row_bytes,
                static_cast<std::size_t>(share.rows) * output.row_bytes);
    is_whole = share.is_whole;
  }

  void answered(const Timing& how) noexcept override {
    const std::lock_guard lock(mutex);
    ++num_ends;
    timing = how;
    ended.notify_all();
  }

  void refused(const Refusal& why) noexcept override {
    const std::lock_guard lock(mutex);
    ++num_ends;
    refusal = why;
    ended.notify_all();
  }

  bool has_ended_within(double seconds) {
    std::unique_lock lock(mutex);
    return ended.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return num_ends > 0; });
  }

  // What the model of these tests answers: three times the input and one.
  bool has_its_answer() {
    const std::lock_guard lock(mutex);
    if (!timing || num_ends != 1) return false;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (answers[i] != values[i] * 3 + 1) return false;
    }
    return true;
  }

  std::vector<std::int64_t> values;
  std::vector<std::int64_t> answers;
  std::mutex mutex;
  std::condition_variable ended;
  int num_takes = 0;
  int num_ends = 0;
  bool is_whole = false;
  std::optional<Timing> timing;
  std::optional<Refusal> refusal;
};

inline std::shared_ptr<ScriptedCall> call(std::int64_t caller, std::int64_t rows = 1, int priority = 0,
                                          double deadline = kNever) {
  auto made = std::make_shared<ScriptedCall>(caller, rows);
  made->priority = priority;
  made->deadline = deadline;
  return made;
}

// Whose rows are in a batch, in order.
inline std::vector<std::int64_t> callers_in(const Batch& batch) {
  std::vector<std::int64_t> callers;
  const auto* const values = reinterpret_cast<const std::int64_t*>(batch.feeds[0].data);
  for (std::int64_t row = 0; row < batch.rows; ++row) {
    const std::int64_t caller = values[row * batch.feeds[0].shape[1]];
    if (callers.empty() || callers.back() != caller) callers.push_back(caller);
  }
  return callers;
}

// The model of these tests.
struct Computed {
  explicit Computed(const Batch& batch) {
    const Feed& feed = batch.feeds[0];
    const std::size_t count = static_cast<std::size_t>(feed.shape[0] * feed.shape[1]);
    values.resize(count);
    const auto* const from = reinterpret_cast<const std::int64_t*>(feed.data);
    for (std::size_t i = 0; i < count; ++i) values[i] = from[i] * 3 + 1;
    Output output;
    output.element = Element::kInt64;
    output.shape = feed.shape;
    output.data = reinterpret_cast<const std::byte*>(values.data());
    output.size_bytes = count * 8;
    output.row_bytes = static_cast<std::size_t>(feed.shape[1]) * 8;
    outputs.push_back(output);
  }
  std::vector<std::int64_t> values;
  std::vector<Output> outputs;
};

// A batcher on a clock that moves when it is told to.
struct Bench {
  explicit Bench(const Limits& limits, std::size_t num_lanes = 1)
      : lanes(std::make_shared<LaneGroup>(num_lanes, [this] { return now; })), batcher(open(limits)) {}
  ~Bench() {
    for (const auto& one : all) one->close(nullptr, "SERVER_DRAINING", true);
    lanes->close();
  }

  std::shared_ptr<Batcher> open(const Limits& limits) {
    all.push_back(Batcher::open(limits, true, lanes, std::make_shared<Meters>(std::vector<double>{0.001, 1},
                                                                              std::vector<double>{1, 8})));
    return all.back();
  }

  void settle(std::unique_ptr<Batch> batch, double seconds = 0.001) const {
    const Computed computed(*batch);
    const std::shared_ptr<Batcher> from = batch->batcher;
    REQUIRE(from->settle(batch, computed.outputs, seconds));
  }

  // Lets the batcher see runs that take so long.
  void teach(double seconds, std::int64_t rows = 1) {
    for (int i = 0; i < 20; ++i) {
      REQUIRE_FALSE(batcher->submit(call(0, rows)));
      settle(lanes->take(0, 0), seconds);
    }
  }

  // Is the lane until nothing waits; returns whose rows were in each batch.
  std::vector<std::vector<std::int64_t>> run_all() {
    std::vector<std::vector<std::int64_t>> batches;
    while (std::unique_ptr<Batch> batch = lanes->take(0, 0)) {
      batches.push_back(callers_in(*batch));
      settle(std::move(batch));
    }
    return batches;
  }

  double now = 1000;
  std::vector<std::shared_ptr<Batcher>> all;
  std::shared_ptr<LaneGroup> lanes;
  std::shared_ptr<Batcher> batcher;
};

inline Limits limits(std::int64_t rows = 8, double delay = 0) {
  return {rows, std::size_t{1} << 30, 1 << 20, std::size_t{1} << 40, delay};
}

using Callers = std::vector<std::vector<std::int64_t>>;

}  // namespace headrace::batching
