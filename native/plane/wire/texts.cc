#include "plane/wire/texts.h"

#include <cstdint>
#include <optional>
#include <string_view>

#include "plane/wire/tensors.h"

namespace headrace::plane::wire {
namespace {

constexpr std::uint32_t kStringValues = 1;   // of StringValues
constexpr std::uint32_t kBytesContents = 8;  // of InferTensorContents, and its last

bool take_text(const Reader& content, std::size_t count, Tensor& tensor, Scratch& scratch) {
  if (tensor.texts.size() == count) return false;
  const std::optional<std::string_view> text = content.text(scratch, content.left());
  if (!text) return false;
  tensor.texts.push_back(*text);
  return true;
}

// The number of texts that the shape needs; nothing when they are more than are read here.
std::optional<std::size_t> begin(Tensor& tensor) {
  const std::optional<std::size_t> count = count_elements(tensor.shape, Element::kInt64);
  if (!count || *count > kMostTexts) return std::nullopt;
  tensor.is_text = true;
  return count;
}

// A message whose field `field` is repeated, and of whose other fields none below it may be there.
bool take_repeated(Reader message, std::uint32_t field, Tensor& tensor, Scratch& scratch) {
  const std::optional<std::size_t> count = begin(tensor);
  if (!count) return false;
  while (!message.is_at_end()) {
    Tag tag;
    Reader content;
    if (!message.read_tag(tag)) return false;
    if (tag.field > field) {
      if (!message.skip(tag.type)) return false;
    } else if (!tag.is(field, WireType::kLength) || !message.read_length(content) ||
               !take_text(content, *count, tensor, scratch)) {
      return false;
    }
  }
  return tensor.texts.size() == *count;
}

}  // namespace

bool take_strings(Reader values, Tensor& tensor, Scratch& scratch) {
  return take_repeated(values, kStringValues, tensor, scratch);
}

bool take_bytes_contents(Reader contents, Tensor& tensor, Scratch& scratch) {
  return take_repeated(contents, kBytesContents, tensor, scratch);
}

bool take_raw_texts(Reader raw, Tensor& tensor, Scratch& scratch) {
  const std::optional<std::size_t> count = begin(tensor);
  if (!count) return false;
  while (!raw.is_at_end()) {
    std::uint32_t length = 0;
    Reader content;
    if (!raw.read_fixed32(length) || !raw.take(length, content) || !take_text(content, *count, tensor, scratch)) {
      return false;
    }
  }
  return tensor.texts.size() == *count;
}

}  // namespace headrace::plane::wire
