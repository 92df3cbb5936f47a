// Texts in place of numbers, read: for inputs whose numbers stand for texts.
#pragma once

#include <cstddef>

#include "plane/question.h"
#include "plane/wire/reader.h"

namespace headrace::plane::wire {

// More in one tensor are left to the complete server, which does not hold others up by them.
inline constexpr std::size_t kMostTexts = 16'384;

// Takes the texts of a tensor whose shape is known: of headrace.type.v1.StringValues, of
// inference.InferTensorContents, or of raw_input_contents, where each has its length in four bytes before it.  Fails when
// they are too few or too many, or one is not UTF-8.
bool take_strings(Reader values, Tensor& tensor, Scratch& scratch);
bool take_bytes_contents(Reader contents, Tensor& tensor, Scratch& scratch);
bool take_raw_texts(Reader raw, Tensor& tensor, Scratch& scratch);

}  // namespace headrace::plane::wire
