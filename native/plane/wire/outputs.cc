#include "plane/wire/outputs.h"

#include <cstring>
#include <type_traits>

#include "gather/convert.h"
#include "plane/wire/contents.h"

namespace headrace::plane::wire {
namespace {

constexpr std::uint32_t kPredictOutputs = 2;
constexpr std::uint32_t kInferOutputs = 5;
constexpr std::uint32_t kRawOutputs = 6;

// headrace.type.v1.DataType
std::uint64_t data_type_of(Element element) { return static_cast<std::uint64_t>(element) + 1; }

std::size_t size_of_lengths(const std::vector<std::int64_t>& shape) {
  std::size_t size = 0;
  for (const std::int64_t length : shape) size += size_of_varint(static_cast<std::uint64_t>(length));
  return size;
}

// `repeated int64`, packed.
std::size_t size_of_shape(std::uint32_t field, const std::vector<std::int64_t>& shape) {
  return shape.empty() ? 0 : size_of_field(field, size_of_lengths(shape));
}

void write_shape(Writer& writer, std::uint32_t field, const std::vector<std::int64_t>& shape) {
  if (shape.empty()) return;
  writer.length(field, size_of_lengths(shape));
  for (const std::int64_t length : shape) writer.varint(static_cast<std::uint64_t>(length));
}

// What the field of the form holds: the elements, or a message that has them in its first field.
std::size_t size_of_form(const OutputHead& head) {
  if (head.form == Content::kData || head.content == 0) return head.content;
  return size_of_field(1, head.content);
}

std::size_t size_of_tensor(const OutputHead& head) {
  return size_of_varint_field(1, data_type_of(head.element)) + size_of_shape(2, head.shape) +
         size_of_field(static_cast<std::uint32_t>(head.form), size_of_form(head));
}

std::size_t size_of_entry(const OutputHead& head) {
  return size_of_field(1, head.name.size()) + size_of_field(2, size_of_tensor(head));
}

std::size_t size_of_infer_head(const OutputHead& head) {
  return size_of_field(1, head.name.size()) + size_of_field(2, name_of(head.element).size()) +
         size_of_shape(3, head.shape);
}

void write_infer_head(Writer& writer, const OutputHead& head) {
  writer.text(1, head.name);
  writer.text(2, name_of(head.element));
  write_shape(writer, 3, head.shape);
}

// The packed field inside of InferTensorContents; absent when there are no elements.
std::size_t size_of_contents(const OutputHead& head) {
  return head.content == 0 ? 0 : size_of_field(contents_field(head.element), head.content);
}

template <class Number>
std::uint64_t number_at(const std::byte* data) {
  Number number;
  std::memcpy(&number, data, sizeof number);
  if constexpr (std::is_signed_v<Number>) return static_cast<std::uint64_t>(static_cast<std::int64_t>(number));
  return static_cast<std::uint64_t>(number);
}

std::uint64_t number_of(Element element, const std::byte* data) {
  switch (element) {
    case Element::kInt8: return number_at<std::int8_t>(data);
    case Element::kInt16: return number_at<std::int16_t>(data);
    case Element::kInt32: return number_at<std::int32_t>(data);
    case Element::kInt64: return number_at<std::int64_t>(data);
    case Element::kUint8: return number_at<std::uint8_t>(data);
    case Element::kUint16: return number_at<std::uint16_t>(data);
    case Element::kUint32: return number_at<std::uint32_t>(data);
    case Element::kBool: return number_at<std::uint8_t>(data);
    default: return number_at<std::uint64_t>(data);
  }
}

template <class Bits>
Bits bits_at(const std::byte* data) {
  Bits bits;
  std::memcpy(&bits, data, sizeof bits);
  return bits;
}

// All of them have a double of the same value.
double float_of(Element element, const std::byte* data) {
  switch (element) {
    case Element::kFp64: return bits_at<double>(data);
    case Element::kFp32: return static_cast<double>(bits_at<float>(data));
    default: {
      static const Convert widen_fp16 = find_convert(Element::kFp16, Element::kFp32, instruction_sets().front());
      static const Convert widen_bf16 = find_convert(Element::kBf16, Element::kFp32, instruction_sets().front());
      float wide = 0;
      (element == Element::kFp16 ? widen_fp16 : widen_bf16)(data, reinterpret_cast<std::byte*>(&wide), 1);
      return static_cast<double>(wide);
    }
  }
}

bool is_float(Element element) {
  return element == Element::kFp32 || element == Element::kFp64 || element == Element::kFp16 ||
         element == Element::kBf16;
}

}  // namespace

bool can_be_values(Element element) { return element != Element::kFp8E4M3 && element != Element::kFp8E5M2; }

Content form_of_values(Element element, const std::byte* data, std::size_t size_bytes) {
  if (is_float(element)) return Content::kFloats;
  if (element != Element::kUint64) return Content::kInts;
  for (std::size_t at = 0; at < size_bytes; at += sizeof(std::uint64_t)) {
    if (bits_at<std::uint64_t>(data + at) > INT64_MAX) return Content::kData;
  }
  return Content::kInts;
}

std::size_t size_of_values(Content form, Element element, const std::byte* data, std::size_t size_bytes) {
  switch (form) {
    case Content::kFloats: return size_bytes / size_of(element) * sizeof(double);
    case Content::kInts: return size_of_varints(element, data, size_bytes);
    default: return size_bytes;
  }
}

void write_values(Content form, Element element, const std::byte* data, std::size_t size_bytes, std::byte* to) {
  if (form == Content::kInts) return write_varints(element, data, size_bytes, to);
  if (form == Content::kData) {
    if (size_bytes > 0) std::memcpy(to, data, size_bytes);
    return;
  }
  for (std::size_t at = 0; at < size_bytes; at += size_of(element), to += sizeof(double)) {
    const double value = float_of(element, data + at);
    std::memcpy(to, &value, sizeof value);
  }
}

std::size_t size_of_predict_output(const OutputHead& head) { return size_of_field(kPredictOutputs, size_of_entry(head)); }

std::byte* write_predict_output(Writer& writer, const OutputHead& head) {
  writer.length(kPredictOutputs, size_of_entry(head));
  writer.text(1, head.name);
  writer.length(2, size_of_tensor(head));
  writer.varint_field(1, data_type_of(head.element));
  write_shape(writer, 2, head.shape);
  writer.length(static_cast<std::uint32_t>(head.form), size_of_form(head));
  if (head.form != Content::kData && head.content > 0) writer.length(1, head.content);
  return writer.reserve(head.content);
}

std::size_t size_of_infer_output(const OutputHead& head) { return size_of_field(kInferOutputs, size_of_infer_head(head)); }

void write_infer_output(Writer& writer, const OutputHead& head) {
  writer.length(kInferOutputs, size_of_infer_head(head));
  write_infer_head(writer, head);
}

std::size_t size_of_typed_output(const OutputHead& head) {
  return size_of_field(kInferOutputs, size_of_infer_head(head) + size_of_field(5, size_of_contents(head)));
}

std::byte* write_typed_output(Writer& writer, const OutputHead& head) {
  writer.length(kInferOutputs, size_of_infer_head(head) + size_of_field(5, size_of_contents(head)));
  write_infer_head(writer, head);
  writer.length(5, size_of_contents(head));
  if (head.content > 0) writer.length(contents_field(head.element), head.content);
  return writer.reserve(head.content);
}

std::size_t size_of_raw_output(std::size_t content) { return size_of_field(kRawOutputs, content); }

std::byte* write_raw_output(Writer& writer, std::size_t content) {
  writer.length(kRawOutputs, content);
  return writer.reserve(content);
}

bool is_same_in_typed_field(Element element) {
  return element == Element::kFp32 || element == Element::kFp64 || element == Element::kBool;
}

std::size_t size_of_varints(Element element, const std::byte* data, std::size_t size_bytes) {
  std::size_t size = 0;
  for (std::size_t at = 0; at < size_bytes; at += size_of(element)) size += size_of_varint(number_of(element, data + at));
  return size;
}

void write_varints(Element element, const std::byte* data, std::size_t size_bytes, std::byte* to) {
  Writer writer(to, size_of_varints(element, data, size_bytes));
  for (std::size_t at = 0; at < size_bytes; at += size_of(element)) writer.varint(number_of(element, data + at));
}

}  // namespace headrace::plane::wire
