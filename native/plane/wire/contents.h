// Elements in typed fields, read: those of inference.InferTensorContents, and those of headrace.type.v1.FloatValues and
// IntValues.
#pragma once

#include "plane/question.h"
#include "plane/wire/reader.h"

namespace headrace::plane::wire {

// Takes the elements of a tensor whose type and shape are known.  Floats stay where they are; integers, whose size varies
// on the wire, are decoded.  Fails when they lie in another field, are too few or too many, or out of range, or the type
// travels raw only.
bool take_contents(Reader contents, Tensor& tensor);

// Takes the elements of a tensor of floats or integers from their values; floats of 8 bits are not read here.
// Fails when they are too few or too many, in several runs, or out of range.
bool take_floats(Reader values, Tensor& tensor);
bool take_ints(Reader values, Tensor& tensor);

// The number of the field in which elements of a type travel; 0 for those that travel raw only.
std::uint32_t contents_field(Element element);

}  // namespace headrace::plane::wire
