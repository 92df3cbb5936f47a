// One caller's request as the batcher sees it: its inputs, when it wants an answer, and whom to tell.
//
// A door derives from Call.  The batcher keeps a call alive while it waits or runs, reads its inputs in place, and ends
// it exactly once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "batching/clock.h"
#include "batching/outcome.h"
#include "batching/part.h"
#include "gather/element.h"

namespace headrace::batching {

// Bytes that lie together.
struct Piece {
  const std::byte* data = nullptr;
  std::size_t size = 0;
};

// One input of one call.  The memory that it names must stay as it is until the call has ended, or, for a call that has
// left, until the call is destroyed.
struct Input {
  // Nothing for objects of a language: whoever submitted them assembles them.
  std::optional<Element> element;
  // All axes; the first one counts the rows.
  std::vector<std::int64_t> shape;

  // The elements in row-major order, little-endian, cut anywhere: a row, even an element, may lie in two pieces.
  // Together exactly as many bytes as the shape needs.
  std::vector<Piece> pieces;

  // Instead of pieces: the first element, and for each axis the distance of two neighbours in bytes.
  const std::byte* first = nullptr;
  std::vector<std::ptrdiff_t> strides;
};

// One output of a whole batch, in the order of the signature.
struct Output {
  // Nothing for objects of a language.
  std::optional<Element> element;
  // All axes.  Of a model that takes rows the first one counts the rows of the batch.
  std::vector<std::int64_t> shape;
  // The elements in row-major order; null when there is no element type, or when no call of the batch asked for bytes.
  const std::byte* data = nullptr;
  std::size_t size_bytes = 0;
  // Of one row; only where the first axis counts rows.
  std::size_t row_bytes = 0;
  // Whoever keeps this may go on reading the output.  What it is, is known to who runs the model.
  std::shared_ptr<const void> owner;
};

// The part of a batch's outputs that belongs to one call.
struct Share {
  const std::vector<Output>& outputs;
  // Rows [first, first + rows) of the call are rows [row, row + rows) of the outputs.
  std::int64_t first = 0;
  std::int64_t rows = 0;
  std::int64_t row = 0;
  // All rows that the call has: it is not computed in slices.
  std::int64_t call_rows = 0;
  // The outputs hold this call and nothing else: they are its answer as they are, whatever their shape.
  bool is_whole = false;
};

class Call {
 public:
  Call() = default;
  virtual ~Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Some outputs are there: read them before returning, or keep their owner.  On a lane's thread, with no lock held;
  // never two at once for one call, once for each slice, in any order; perhaps once more after the call has left.
  virtual void take(const Share& share) noexcept = 0;

  // Exactly one of these two ends a call that was admitted, unless `Batcher::leave` has said that it left.  On any
  // thread, with no lock held.
  virtual void answered(const Timing& timing) noexcept = 0;
  virtual void refused(const Refusal& refusal) noexcept = 0;

  // All of these are set before `submit`, and left alone from then on.
  std::vector<Input> inputs;  // in the order of the signature
  std::size_t nbytes = 0;     // of all inputs
  int priority = 0;           // higher goes first
  double deadline = kNever;   // on the batcher's clock; std::chrono::steady_clock in seconds unless a test gives one

 private:
  friend class Batcher;
  Progress progress_;
};

}  // namespace headrace::batching
