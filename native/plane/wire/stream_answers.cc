#include "plane/wire/stream_answers.h"

#include <string>

#include "plane/statuses.h"
#include "plane/wire/parameters.h"
#include "plane/wire/writer.h"

namespace headrace::plane::wire {
namespace {

constexpr std::uint32_t kPredictId = 1;
constexpr std::uint32_t kPredictResponse = 2;
constexpr std::uint32_t kPredictError = 3;
constexpr std::uint32_t kInferError = 1;
constexpr std::uint32_t kInferResponse = 2;
constexpr std::uint32_t kInferId = 3;

std::size_t size_of(const std::vector<Piece>& pieces) {
  std::size_t size = 0;
  for (const Piece& piece : pieces) size += piece.size;
  return size;
}

void write(Writer& writer, const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) writer.bytes(piece.data, piece.size);
}

std::size_t size_of_text(std::uint32_t field, std::string_view text) {
  return text.empty() ? 0 : size_of_field(field, text.size());
}

void write_text(Writer& writer, std::uint32_t field, std::string_view text) {
  if (!text.empty()) writer.text(field, text);
}

}  // namespace

Block predict_answer(std::string_view id, const std::vector<Piece>& response) {
  const std::size_t content = size_of(response);
  Block block(size_of_text(kPredictId, id) + size_of_field(kPredictResponse, content));
  Writer writer(block.data(), block.size());
  write_text(writer, kPredictId, id);
  writer.length(kPredictResponse, content);
  write(writer, response);
  return block;
}

Block predict_refusal(std::string_view id, const Status& status) {
  const std::string error = encode(status);
  Block block(size_of_text(kPredictId, id) + size_of_field(kPredictError, error.size()));
  Writer writer(block.data(), block.size());
  write_text(writer, kPredictId, id);
  writer.text(kPredictError, error);
  return block;
}

Block infer_answer(const std::vector<Piece>& response) {
  const std::size_t content = size_of(response) + kFinalResponse.size();
  Block block(size_of_field(kInferResponse, content));
  Writer writer(block.data(), block.size());
  writer.length(kInferResponse, content);
  write(writer, response);
  writer.bytes(kFinalResponse.data(), kFinalResponse.size());
  return block;
}

Block infer_refusal(std::string_view id, const Status& status) {
  const std::string_view code = name_of_code(status.code);
  const std::string_view message = status.message.empty() ? code : std::string_view(status.message);
  const std::string reason = reason_of(status.details);
  std::size_t inner = size_of_text(kInferId, id) + kFinalResponse.size() + size_of_text_parameter("headrace_code", code);
  if (!reason.empty()) inner += size_of_text_parameter("headrace_reason", reason);
  Block block(size_of_field(kInferError, message.size()) + size_of_field(kInferResponse, inner));
  Writer writer(block.data(), block.size());
  writer.text(kInferError, message);
  writer.length(kInferResponse, inner);
  write_text(writer, kInferId, id);
  writer.bytes(kFinalResponse.data(), kFinalResponse.size());
  write_text_parameter(writer, "headrace_code", code);
  if (!reason.empty()) write_text_parameter(writer, "headrace_reason", reason);
  return block;
}

}  // namespace headrace::plane::wire
