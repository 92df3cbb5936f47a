// Puts the rows of the parts of a batch into one block of memory for each input, in the element that the lane wants.
//
// Buffers are used for one batch after another.  What lies together already, aligned and in the right element, is not
// copied when it is alone.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "batching/batch.h"
#include "batching/limits.h"

namespace headrace::batching {

// The memory of one lane for the batches of one model.
class Assembly {
 public:
  Assembly() = default;
  Assembly(const Assembly&) = delete;
  Assembly& operator=(const Assembly&) = delete;

  // Empty, or one for each input.
  void set_elements(std::vector<std::optional<Element>> elements);

  // Fills `batch.feeds`.  Throws std::bad_alloc.
  void assemble(Batch& batch, const Limits& limits);

  // Takes the buffers of a batch back, except those that an output may look at.
  void release(Batch& batch, const std::vector<Output>& outputs);

 private:
  std::optional<Element> wanted(std::size_t input, Element given) const;
  std::shared_ptr<Buffer> buffer(std::size_t input, std::size_t size_bytes, std::size_t best_size_bytes);

  std::mutex mutex_;
  std::vector<std::optional<Element>> elements_;
  std::vector<std::shared_ptr<Buffer>> buffers_;  // one for each input, where it is not in a batch
};

}  // namespace headrace::batching
