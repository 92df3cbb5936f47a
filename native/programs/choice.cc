#include "programs/choice.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "batching/batcher.h"

namespace headrace::programs {
namespace {

// A model that takes no rows may have inputs of any length all the same.
std::int64_t rows_of(const batching::Batch& batch) {
  for (const batching::Feed& feed : batch.feeds) {
    if (!feed.shape.empty()) return feed.shape[0];
  }
  return 1;
}

// Counts one who runs, until it goes.
class Running {
 public:
  explicit Running(Processors::Runs& runs) : runs_(runs), company_(runs.begin()) {}
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running() { runs_.end(); }
  Company company() const { return company_; }

 private:
  Processors::Runs& runs_;
  const Company company_;
};

}  // namespace

Choice::Choice(std::vector<Bucket> buckets, std::shared_ptr<Processors::Runs> runs)
    : buckets_(std::move(buckets)), runs_(std::move(runs)) {
  if (buckets_.empty()) throw std::invalid_argument("There is nothing to choose from.");
}

int Choice::run(const batching::Batch& batch, std::vector<batching::Output>& outputs) {
  const std::int64_t rows = rows_of(batch);
  const auto found = std::find_if(buckets_.begin(), buckets_.end(),
                                  [rows](const Bucket& bucket) { return rows <= bucket.max_rows; });
  const Bucket& bucket = found == buckets_.end() ? buckets_.back() : *found;
  const Running running(*runs_);
  const std::shared_ptr<batching::Program>* program = &bucket.lone;
  if (running.company() == Company::kOthers) {
    program = &bucket.beside_others;
  } else if (bucket.busy != bucket.lone && (running.company() == Company::kOwn || batch.batcher->waiting_rows() > 0)) {
    program = &bucket.busy;
  }
  (*program)->run(batch, outputs);
  return bucket.variant;
}

}  // namespace headrace::programs
