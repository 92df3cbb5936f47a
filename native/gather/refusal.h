// Why a copy is refused before any memory is touched.  Each message is a whole sentence for the caller.
#pragma once

#include <stdexcept>

namespace headrace {

// Sizes, shapes or addresses that cannot be right.
class Refusal : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// No conversion exists between the two element types.
class UnsupportedConversion : public Refusal {
  using Refusal::Refusal;
};

// The memory is not laid out so that it can be written: elements of a target share bytes, or source and target overlap.
class BadLayout : public Refusal {
  using Refusal::Refusal;
};

}  // namespace headrace
