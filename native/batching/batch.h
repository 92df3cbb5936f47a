// What a lane runs at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "batching/call.h"
#include "batching/limits.h"

namespace headrace::batching {

class Batcher;

// Memory for the rows of one input, aligned to a cache line; used for one batch after another.
class Buffer {
 public:
  explicit Buffer(std::size_t size_bytes);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return memory_.get(); }
  std::size_t size_bytes() const { return size_bytes_; }
  // Whoever keeps this may go on reading and writing, also when the buffer has gone.
  const std::shared_ptr<std::byte>& memory() const { return memory_; }
  bool overlaps(const std::byte* other, std::size_t other_size) const;

  // What the binding has made of it once, to use it again.
  std::shared_ptr<void> face;

 private:
  std::shared_ptr<std::byte> memory_;
  std::size_t size_bytes_;
};

// One input of a batch.
struct Feed {
  // Nothing when its elements are objects: the binding puts them together.
  std::optional<Element> element;
  // All axes; the first counts the rows of the batch, or is whatever the call has when the model takes no rows.
  std::vector<std::int64_t> shape;
  // Row-major, aligned for the element.  In `buffer`, or, when that is null, the lone call's own bytes, which nobody
  // may write to.  Null for objects, and for a lone call's array that is not in one piece (`Input::strides`).
  std::byte* data = nullptr;
  std::shared_ptr<Buffer> buffer;
};

// Stays as it is until it is settled or has failed; one that is dropped has failed.
struct Batch {
  Batch() = default;
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  std::shared_ptr<Batcher> batcher;  // null when it is over
  std::vector<Part*> parts;
  std::vector<std::shared_ptr<Call>> calls;  // those of the parts
  std::int64_t rows = 0;
  Reason reason = Reason::kIdle;
  std::size_t lane = 0;
  double taken_at = 0;
  double charged_seconds = 0;  // what its model was charged beforehand
  double assemble_seconds = 0;
  std::vector<Feed> feeds;
  // Of one that the model's own program has run, and that `LaneGroup::serve` gives back all the same: why it failed, or,
  // when that is null, outputs that do not have one row for each of its rows.
  std::exception_ptr failure;
  std::vector<Output> outputs;
};

}  // namespace headrace::batching
