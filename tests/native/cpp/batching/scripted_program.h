// A model that lanes run themselves.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "batching/scripted_call.h"

namespace headrace::batching {

// The model of these tests, which can be told to do something else first.
class ScriptedProgram final : public Program {
 public:
  explicit ScriptedProgram(std::function<void(const Batch&)> before = {}, int variant = 0)
      : before_(std::move(before)), variant_(variant) {}

  int run(const Batch& batch, std::vector<Output>& outputs) override {
    ++num_runs;
    if (before_) before_(batch);
    const auto computed = std::make_shared<const Computed>(batch);
    outputs = computed->outputs;
    for (Output& output : outputs) output.owner = computed;
    return variant_;
  }

  std::atomic<int> num_runs{0};

 private:
  const std::function<void(const Batch&)> before_;
  const int variant_;
};

// What a lane does with outputs.
inline bool settle(std::unique_ptr<Batch>& batch, const std::vector<Output>& outputs, double seconds, int variant) {
  return batch->batcher->settle(batch, outputs, seconds, variant);
}

}  // namespace headrace::batching
