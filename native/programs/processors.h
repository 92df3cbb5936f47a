// Who runs plans in this process: a run that is alone may use all processors, and its threads would be in the way of any
// other's.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

namespace headrace::programs {

// What else there is to run.
enum class Company {
  kNone,
  kOwn,     // more calls of the same model
  kOthers,  // another model, which runs
};

// The processors of the process.  Any thread.
class Processors {
 public:
  // The runs of one model.
  class Runs {
   public:
    explicit Runs(std::shared_ptr<Processors> processors) : processors_(std::move(processors)) {}
    Runs(const Runs&) = delete;
    Runs& operator=(const Runs&) = delete;

    // A run begins, beside whom.
    Company begin() {
      const std::lock_guard lock(processors_->mutex_);
      const bool has_others = processors_->num_running_ > num_running_;
      ++processors_->num_running_;
      ++num_running_;
      return has_others ? Company::kOthers : num_running_ > 1 ? Company::kOwn : Company::kNone;
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
  std::mutex mutex_;
  int num_running_ = 0;  // of all models
};

}  // namespace headrace::programs
