// The bytes that blocks of rows cover: whether they can exist, and whether two of them overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "gather/gather.h"

namespace headrace {

// From the first byte that any element covers to the one after the last; empty when there are no elements.
struct Region {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  bool is_empty() const { return begin == end; }
  bool overlaps(const Region& other) const { return begin < other.end && other.begin < end; }
};

// What messages call a block; put into words only when there is something to say.
struct Label {
  const char* kind;
  std::size_t index = static_cast<std::size_t>(-1);
  // "batch" or "source 3".
  std::string text() const;
};

// Throws Refusal when a length is negative, an address null or the end of the block lies outside what can be addressed.
Region region_of(const Source& rows, const Label& label);
Region region_of(const Target& rows, const Label& label);

// Throws BadLayout when two elements of the block may share bytes.
void check_no_shared_bytes(const Target& rows, const Label& label);

// Throws BadLayout when two of the regions overlap.  Empty regions overlap nothing.
void check_disjoint(const std::vector<Region>& regions, const char* kind);

}  // namespace headrace
