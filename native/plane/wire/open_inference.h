// inference.ModelInferRequest, and the small requests about models, read.
#pragma once

#include <string>
#include <string_view>

#include "plane/question.h"
#include "plane/wire/reader.h"

namespace headrace::plane::wire {

// False when the message is not one that the plane answers: malformed or wrong.
bool read_infer(Reader message, Question& question);

// The id of a ModelInferRequest, whatever else is in it.  False when the message is malformed at its top.
bool read_id(Reader message, std::string& id);

// ModelReadyRequest, ModelMetadataRequest.  `model` as in Question.
struct ModelQuestion {
  std::string_view model;
  std::string_view version;
  Scratch scratch;
};

bool read_model_question(Reader message, ModelQuestion& question);

// Whether it is a message in which nothing is known, as the requests about the server are.
bool read_empty(Reader message);

}  // namespace headrace::plane::wire
