// Converts runs of elements between number formats.
//
// Rounds to nearest, ties to even, whatever rounding mode or flush-to-zero bits the calling thread has set.  NaN stays
// NaN with its sign; its payload is not promised.  What is too large for FP16 or FP32 becomes infinity.  Subnormal
// numbers are kept.  Addresses need no alignment.
#pragma once

#include <cstddef>
#include <vector>

#include "gather/element.h"

namespace headrace {

// The widest instructions that may be used; all give the same results.
enum class InstructionSet { kPortable, kAvx2, kAvx512 };

// Those that this processor and its operating system have, the best first.
const std::vector<InstructionSet>& instruction_sets();

// Converts `count` elements; the two runs do not overlap.
using Convert = void (*)(const std::byte* from, std::byte* to, std::size_t count);

// Precondition: is_convertible(from, to).
Convert find_convert(Element from, Element to, InstructionSet instruction_set);

}  // namespace headrace
