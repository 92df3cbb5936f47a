// Who runs plans in this process: a run that is alone may use all processors, and its threads would be in the way of any
// other's.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "batching/clock.h"

namespace headrace::programs {

// What else there is to run.
enum class Company {
  kNone,
  kOwn,     // more calls of the same model
  kOthers,  // another model, which runs, or did a moment ago beside others
};

// The processors of the process.  Any thread.
//
// Runs of two models that met are taken to meet again, for a while: a run with helpers that another begins beside takes
// ten times as long, because helpers wait for each other between any two parts of it, each time for whoever has the
// processor of one of them.
class Processors {
 public:
  // `memory_seconds` is how long models are taken to meet that have met.
  explicit Processors(double memory_seconds = kMemorySeconds, batching::Clock clock = {})
      : memory_seconds_(memory_seconds), clock_(std::move(clock)) {}

  // The runs of one model.
  class Runs {
   public:
    explicit Runs(std::shared_ptr<Processors> processors) : processors_(std::move(processors)) {}
    Runs(const Runs&) = delete;
    Runs& operator=(const Runs&) = delete;

    // A run begins, beside whom.
    Company begin() {
      Processors& all = *processors_;
      const std::lock_guard lock(all.mutex_);
      const bool has_others = all.num_running_ > num_running_;
      const bool meets_others = has_others || all.have_met_lately();
      if (has_others) all.met_at_ = all.now();
      ++all.num_running_;
      ++num_running_;
      return meets_others ? Company::kOthers : num_running_ > 1 ? Company::kOwn : Company::kNone;
    }
    void end() {
      const std::lock_guard lock(processors_->mutex_);
      --processors_->num_running_;
      --num_running_;
    }

   private:
    const std::shared_ptr<Processors> processors_;
    int num_running_ = 0;
  };

 private:
  static constexpr double kMemorySeconds = 0.25;

  double now() const { return clock_ ? clock_() : batching::steady_seconds(); }
  bool have_met_lately() const { return memory_seconds_ > 0 && now() < met_at_ + memory_seconds_; }

  const double memory_seconds_;
  const batching::Clock clock_;
  std::mutex mutex_;
  int num_running_ = 0;  // of all models
  double met_at_ = -batching::kNever;
};

}  // namespace headrace::programs
