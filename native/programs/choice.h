// Several programs of one model: which of them runs, is chosen by the rows of the batch and by who else runs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "batching/program.h"
#include "programs/processors.h"

namespace headrace::programs {

// Batches of up to so many rows, and what runs them.
struct Bucket {
  std::int64_t max_rows = 0;
  // What answers say of it.
  int variant = 0;
  // While another model runs; while more calls of this one run or wait; and alone.  May be the same.
  std::shared_ptr<batching::Program> beside_others, busy, lone;
};

// What all lanes of one model share.
class Choice final : public batching::Program {
 public:
  // By size, at least one; the last takes everything larger too.
  Choice(std::vector<Bucket> buckets, std::shared_ptr<Processors::Runs> runs);

  int run(const batching::Batch& batch, std::vector<batching::Output>& outputs) override;

 private:
  const std::vector<Bucket> buckets_;
  const std::shared_ptr<Processors::Runs> runs_;
};

}  // namespace headrace::programs
