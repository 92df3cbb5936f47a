// Tensors, written: sizes first, then everything but the elements, which are copied to where the writer reserves room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "gather/element.h"
#include "plane/wire/writer.h"

namespace headrace::plane::wire {

// The forms of headrace.type.v1.Tensor.content that are written, by the numbers of their fields.
enum class Content : std::uint32_t { kData = 3, kFloats = 4, kInts = 5 };

struct OutputHead {
  std::string_view name;
  Element element;
  const std::vector<std::int64_t>& shape;
  std::size_t content;  // bytes of the elements, as they will be written
  Content form = Content::kData;  // of a Predict
};

// An entry of PredictResponse.outputs.
std::size_t size_of_predict_output(const OutputHead& head);
// Returns where the elements go.
std::byte* write_predict_output(Writer& writer, const OutputHead& head);

// Elements as values that people can read.  Not of every type.
bool can_be_values(Element element);
// 64-bit integers that values cannot hold travel as data all the same.
Content form_of_values(Element element, const std::byte* data, std::size_t size_bytes);
std::size_t size_of_values(Content form, Element element, const std::byte* data, std::size_t size_bytes);
void write_values(Content form, Element element, const std::byte* data, std::size_t size_bytes, std::byte* to);

// One of ModelInferResponse.outputs, without elements.
std::size_t size_of_infer_output(const OutputHead& head);
void write_infer_output(Writer& writer, const OutputHead& head);
// With elements in their typed field.
std::size_t size_of_typed_output(const OutputHead& head);
std::byte* write_typed_output(Writer& writer, const OutputHead& head);
// One of ModelInferResponse.raw_output_contents.
std::size_t size_of_raw_output(std::size_t content);
std::byte* write_raw_output(Writer& writer, std::size_t content);

// Whether elements in a typed field are on the wire what they are in memory.
bool is_same_in_typed_field(Element element);
// Of other elements: their size in the typed field, and themselves.
std::size_t size_of_varints(Element element, const std::byte* data, std::size_t size_bytes);
void write_varints(Element element, const std::byte* data, std::size_t size_bytes, std::byte* to);

}  // namespace headrace::plane::wire
