#include "plane/match.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

namespace headrace::plane {
namespace {

bool fits(const TensorSpec& spec, const Tensor& tensor) {
  const bool is_right_type = tensor.is_text ? spec.categories != nullptr : tensor.element == spec.element;
  if (!is_right_type || tensor.shape.size() != spec.shape.size()) return false;
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    if (spec.shape[i] != -1 && spec.shape[i] != tensor.shape[i]) return false;
  }
  return true;
}

// NaN and infinity have every bit of the exponent set.
template <class Bits>
bool are_finite_words(const std::byte* data, std::size_t count, Bits exponent) {
  std::size_t num_others = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof bits, sizeof bits);
    num_others += static_cast<std::size_t>((bits & exponent) == exponent);
  }
  return num_others == 0;
}

bool are_finite(Element element, const std::byte* data, std::size_t count) {
  switch (element) {
    case Element::kFp32: return are_finite_words<std::uint32_t>(data, count, 0x7F800000U);
    case Element::kFp64: return are_finite_words<std::uint64_t>(data, count, 0x7FF0000000000000U);
    case Element::kFp16: return are_finite_words<std::uint16_t>(data, count, 0x7C00U);
    case Element::kBf16: return are_finite_words<std::uint16_t>(data, count, 0x7F80U);
    case Element::kFp8E4M3: return are_finite_words<std::uint8_t>(data, count, 0x7FU);  // no infinity, one NaN
    case Element::kFp8E5M2: return are_finite_words<std::uint8_t>(data, count, 0x7CU);
    default: return true;
  }
}

// Elements may lie in two pieces.
bool are_finite(const Tensor& tensor) {
  const std::size_t size = size_of(tensor.element);
  std::byte whole[8];
  std::size_t have = 0;
  for (const Piece& piece : tensor.pieces) {
    const std::byte* data = piece.data;
    std::size_t left = piece.size;
    if (have > 0) {
      const std::size_t step = std::min(size - have, left);
      std::memcpy(whole + have, data, step);
      have += step;
      data += step;
      left -= step;
      if (have < size) continue;
      if (!are_finite(tensor.element, whole, 1)) return false;
      have = 0;
    }
    const std::size_t count = left / size;
    if (!are_finite(tensor.element, data, count)) return false;
    have = left - count * size;
    std::memcpy(whole, data + count * size, have);
  }
  return true;
}

template <class Number>
bool put_numbers(const Categories& categories, const std::vector<std::string_view>& texts, std::byte* to) {
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<Number>::max());
  for (const std::string_view text : texts) {
    const std::optional<std::int64_t> found = categories.number_of(text);
    if (!found || static_cast<std::uint64_t>(*found) > kLargest) return false;
    const auto number = static_cast<Number>(*found);
    std::memcpy(to, &number, sizeof number);
    to += sizeof number;
  }
  return true;
}

// Puts numbers in the place of texts.  False when a text stands for none.
bool encode(const TensorSpec& spec, Tensor& tensor) {
  tensor.element = spec.element;
  std::byte* const to = tensor.make_room(tensor.texts.size());
  switch (spec.element) {
    case Element::kInt8: return put_numbers<std::int8_t>(*spec.categories, tensor.texts, to);
    case Element::kInt16: return put_numbers<std::int16_t>(*spec.categories, tensor.texts, to);
    case Element::kInt32: return put_numbers<std::int32_t>(*spec.categories, tensor.texts, to);
    case Element::kInt64: return put_numbers<std::int64_t>(*spec.categories, tensor.texts, to);
    case Element::kUint8: return put_numbers<std::uint8_t>(*spec.categories, tensor.texts, to);
    case Element::kUint16: return put_numbers<std::uint16_t>(*spec.categories, tensor.texts, to);
    case Element::kUint32: return put_numbers<std::uint32_t>(*spec.categories, tensor.texts, to);
    case Element::kUint64: return put_numbers<std::uint64_t>(*spec.categories, tensor.texts, to);
    default: return false;
  }
}

Tensor* find(std::vector<Tensor>& tensors, std::string_view name) {
  for (Tensor& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

}  // namespace

bool match(Question& question, const Version& version, batching::Call& call) {
  // As many as the signature has, and each of the signature's is there: so no name is there twice.
  if (question.inputs.size() != version.inputs.size()) return false;
  call.inputs.reserve(version.inputs.size());
  call.nbytes = 0;
  for (const TensorSpec& spec : version.inputs) {
    Tensor* tensor = find(question.inputs, spec.name);
    if (tensor == nullptr || !fits(spec, *tensor)) return false;
    if (version.takes_rows && !call.inputs.empty() && tensor->shape[0] != call.inputs[0].shape[0]) return false;
    if (tensor->is_text && !encode(spec, *tensor)) return false;
    if (spec.finite_only && !are_finite(*tensor)) return false;
    batching::Input& input = call.inputs.emplace_back();
    input.element = tensor->element;
    input.shape = std::move(tensor->shape);
    input.pieces = std::move(tensor->pieces);
    call.nbytes += tensor->size_bytes;
    tensor->name = {};
  }
  return true;
}

bool choose_outputs(const Question& question, const Version& version, std::vector<std::size_t>& chosen) {
  chosen.reserve(version.outputs.size());
  if (question.output_names.empty()) {
    for (std::size_t i = 0; i < version.outputs.size(); ++i) chosen.push_back(i);
    return true;
  }
  for (const std::string_view name : question.output_names) {
    std::size_t index = 0;
    while (index < version.outputs.size() && version.outputs[index].name != name) ++index;
    if (index == version.outputs.size()) return false;
    if (std::find(chosen.begin(), chosen.end(), index) == chosen.end()) chosen.push_back(index);
  }
  return true;
}

}  // namespace headrace::plane
