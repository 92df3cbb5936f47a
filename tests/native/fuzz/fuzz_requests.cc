// What parses bytes from the network, under libFuzzer: `make fuzz`.
//
// The first byte says which reader takes the rest and where it is cut, so that elements, lengths and texts lie in two
// pieces too.  Each piece lies in memory of its own, so that a read over its end is seen.  What was read must hold
// together: a fault here is a fault there.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plane/question.h"
#include "plane/statuses.h"
#include "plane/wire/open_inference.h"
#include "plane/wire/predict.h"

namespace {

namespace plane = headrace::plane;
namespace wire = headrace::plane::wire;

void expect(bool is_so) {
  if (!is_so) std::abort();
}

// Reads every byte: one that is not there is a fault.
std::size_t touch(std::string_view text) {
  std::size_t sum = 0;
  for (const char each : text) sum += static_cast<unsigned char>(each);
  return sum;
}

void check(const plane::Question& question) {
  volatile std::size_t sum = touch(question.model) + touch(question.version) + touch(question.id);
  expect(question.inputs.size() <= plane::kMostTensors && question.output_names.size() <= plane::kMostTensors);
  expect(question.priority >= -100 && question.priority <= 100);
  expect(!question.timeout_seconds || *question.timeout_seconds > 0);
  for (const std::string_view name : question.output_names) sum = sum + touch(name);
  for (const plane::Tensor& tensor : question.inputs) {
    std::size_t num_elements = 1;
    for (const std::int64_t length : tensor.shape) {
      expect(length > 0);
      num_elements *= static_cast<std::size_t>(length);
    }
    expect(tensor.is_text || tensor.texts.empty());
    if (tensor.is_text) {
      expect(tensor.texts.size() == num_elements && tensor.pieces.empty() && tensor.size_bytes == 0);
      for (const std::string_view text : tensor.texts) sum = sum + touch(text);
      continue;
    }
    const std::size_t count = num_elements * headrace::size_of(tensor.element);
    std::size_t size = 0;
    for (const plane::Piece& piece : tensor.pieces) {
      size += piece.size;
      sum = sum + touch({reinterpret_cast<const char*>(piece.data), piece.size});
    }
    expect(size == count && size == tensor.size_bytes);
    sum = sum + touch(tensor.name);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const int reader_number = data[0] % 6;
  const std::size_t cut = data[1];
  data += 2;
  size -= 2;
  std::vector<std::unique_ptr<std::byte[]>> memory;
  std::vector<plane::Piece> pieces;
  for (std::size_t at = 0; at < size;) {
    const std::size_t step = cut == 0 ? size : std::min(cut, size - at);
    memory.emplace_back(new std::byte[step]);
    std::memcpy(memory.back().get(), data + at, step);
    pieces.push_back({memory.back().get(), step});
    at += step;
  }
  const wire::Reader reader(pieces);
  plane::Question question;
  switch (reader_number) {
    case 0:
      if (wire::read_predict(reader, question)) check(question);
      break;
    case 1:
      if (wire::read_infer(reader, question)) check(question);
      break;
    case 2: {
      wire::StreamRequest request;
      if (!wire::read_stream_request(reader, request)) break;
      std::size_t left = 0;
      for (const plane::Piece& piece : request.request) left += piece.size;
      expect(left <= size);
      if (wire::read_predict(wire::Reader(request.request), question)) check(question);
      break;
    }
    case 3: {
      wire::ModelQuestion about;
      if (wire::read_model_question(reader, about)) expect(touch(about.model) + touch(about.version) < SIZE_MAX);
      break;
    }
    case 4: {
      std::string id;
      if (wire::read_id(reader, id)) expect(id.size() <= size);
      break;
    }
    default: {
      // What the complete server sends back is read, too.
      const std::string whole(reinterpret_cast<const char*>(data), size);
      expect(plane::reason_of(whole).size() <= size);
      expect(plane::quote(whole).size() >= size);
    }
  }
  return 0;
}
