// What the tensors of both protocols have in common: shapes, sizes, and the rule for BOOL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "plane/question.h"
#include "plane/wire/reader.h"

namespace headrace::plane::wire {

inline constexpr std::size_t kMostAxes = 32;
// More than any message can hold, and little enough that sizes in bytes can be counted.
inline constexpr std::int64_t kMostBytes = std::int64_t{1} << 48;

// Appends the lengths of a `repeated int64`, packed or not.  Fails on more than kMostAxes.
bool read_lengths(const Tag& tag, Reader& reader, std::vector<std::int64_t>& shape);

// The number of elements; nothing when a length is below 1, or there are too many elements to lie in a message.
std::optional<std::size_t> count_elements(const std::vector<std::int64_t>& shape, Element element);

// Takes bytes as the elements of a tensor whose type and shape are known.  Fails when they are too few or too many, or
// not those of a BOOL.
bool take_bytes(const Reader& content, Tensor& tensor);

// A `repeated` field of strings or such that is read as text.
bool read_text(Reader& reader, Scratch& scratch, std::size_t most, std::string_view& text);

}  // namespace headrace::plane::wire
