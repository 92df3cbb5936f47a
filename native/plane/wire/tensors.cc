#include "plane/wire/tensors.h"

#include <algorithm>

namespace headrace::plane::wire {
namespace {

bool are_flags(const std::vector<Piece>& pieces) {
  std::byte seen{0};
  for (const Piece& piece : pieces) {
    for (std::size_t i = 0; i < piece.size; ++i) seen |= piece.data[i];
  }
  return seen <= std::byte{1};
}

}  // namespace

bool read_lengths(const Tag& tag, Reader& reader, std::vector<std::int64_t>& shape) {
  std::uint64_t value = 0;
  if (tag.type == WireType::kVarint) {
    if (shape.size() == kMostAxes || !reader.read_varint(value)) return false;
    shape.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  Reader packed;
  if (tag.type != WireType::kLength || !reader.read_length(packed)) return false;
  while (!packed.is_at_end()) {
    if (shape.size() == kMostAxes || !packed.read_varint(value)) return false;
    shape.push_back(static_cast<std::int64_t>(value));
  }
  return true;
}

std::optional<std::size_t> count_elements(const std::vector<std::int64_t>& shape, Element element) {
  const std::int64_t most = kMostBytes / static_cast<std::int64_t>(size_of(element));
  std::int64_t count = 1;
  for (const std::int64_t length : shape) {
    if (length < 1 || length > most / count) return std::nullopt;
    count *= length;
  }
  return static_cast<std::size_t>(count);
}

bool take_bytes(const Reader& content, Tensor& tensor) {
  const std::optional<std::size_t> count = count_elements(tensor.shape, tensor.element);
  if (!count || content.left() != *count * size_of(tensor.element)) return false;
  tensor.size_bytes = content.left();
  content.append_to(tensor.pieces);
  return tensor.element != Element::kBool || are_flags(tensor.pieces);
}

bool read_text(Reader& reader, Scratch& scratch, std::size_t most, std::string_view& text) {
  Reader content;
  if (!reader.read_length(content)) return false;
  const std::optional<std::string_view> read = content.text(scratch, most);
  if (!read) return false;
  text = *read;
  return true;
}

}  // namespace headrace::plane::wire
