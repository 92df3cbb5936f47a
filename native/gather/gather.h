// Gathers the rows of many blocks of memory into one batch, and scatters a batch back over many blocks.
//
// Works in two steps: a plan checks everything and throws; running it only moves bytes and cannot fail.  So a caller
// may hold a lock for the first step and drop it for the second.
#pragma once

#include <cstddef>
#include <vector>

#include "gather/convert.h"
#include "gather/element.h"

namespace headrace {

// A block of rows, each an array of `num_axes` axes.  Strides are in bytes and may be negative, or zero in a source.
// `Byte` is `const std::byte` for what is read and `std::byte` for what is written.
template <class Byte>
struct Rows {
  Byte* first;
  Element element;
  std::ptrdiff_t num_rows;
  std::ptrdiff_t row_stride;
  std::size_t num_axes;
  const std::ptrdiff_t* shape;
  const std::ptrdiff_t* strides;
};

using Source = Rows<const std::byte>;
using Target = Rows<std::byte>;

inline constexpr std::size_t kMaxAxes = 64;

class Plan {
 public:
  // All rows of the sources, one after another, into the first rows of `batch`.
  //
  // Throws Refusal (sizes and addresses), UnsupportedConversion or BadLayout.  The plan keeps no pointer to the shapes
  // and strides; the memory that it names must live until it has run.
  static Plan gather(const std::vector<Source>& sources, const Target& batch, InstructionSet instruction_set);

  // The first rows of `batch` into each target in turn, as many as it has.  Throws as `gather` does; targets may not
  // share memory with each other.
  static Plan scatter(const Source& batch, const std::vector<Target>& targets, InstructionSet instruction_set);

  // How many rows of the batch are written or read.
  std::ptrdiff_t num_rows() const { return num_rows_; }

  // How many bytes are written.
  std::size_t size_bytes() const { return size_bytes_; }

  void run() const noexcept;

 private:
  struct Axis {
    std::ptrdiff_t length, from_stride, to_stride;
  };

  // Runs of `run_length` elements that lie together on both sides, repeated along the outer axes.
  struct Step {
    const std::byte* from;
    std::byte* to;
    Convert convert;
    std::size_t run_length;
    std::size_t first_axis, num_axes;
  };

  void add(const Source& from, const Target& to, InstructionSet instruction_set);
  void run(const Step& step) const noexcept;

  std::ptrdiff_t num_rows_ = 0;
  std::size_t size_bytes_ = 0;
  std::vector<Step> steps_;
  std::vector<Axis> axes_;
};

}  // namespace headrace
