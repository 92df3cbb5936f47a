// A request for a prediction, whichever protocol it came in, as views of its message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "gather/element.h"
#include "plane/bytes.h"
#include "plane/wire/reader.h"

namespace headrace::plane {

// One input: whole, of a possible shape, and with as many bytes, or texts, as that shape needs.
struct Tensor {
  std::string_view name;
  bool came_as_values = false;  // readable, for people: of a PredictRequest
  bool is_text = false;  // then it has `texts`, and neither an element type nor bytes
  std::vector<std::string_view> texts;
  Element element = Element::kFp32;
  std::vector<std::int64_t> shape;  // no length is negative or zero
  std::vector<Piece> pieces;        // row-major, little-endian; an element may lie in two
  std::unique_ptr<std::byte[]> decoded;  // what `pieces` names, when it did not lie in the message as such
  std::size_t size_bytes = 0;

  // Memory for so many elements, which do not lie in the message as such.
  std::byte* make_room(std::size_t count) {
    size_bytes = count * size_of(element);
    decoded.reset(new std::byte[size_bytes]);
    pieces.push_back({decoded.get(), size_bytes});
    return decoded.get();
  }
};

// Everything lies in the message, or in `scratch` and `decoded`.
struct Question {
  // `m` or `m@alias`, and the number of a version or nothing.
  std::string_view model;
  std::string_view version;
  std::vector<Tensor> inputs;
  std::vector<std::string_view> output_names;
  int priority = 0;  // higher goes first
  std::optional<double> timeout_seconds;
  std::string_view id;
  // Whether the answer's numbers travel as bytes; else as values that people can read.
  bool is_raw = true;
  wire::Scratch scratch;
};

// More is left to the complete server.
inline constexpr std::size_t kMostTensors = 64;
inline constexpr std::size_t kLongestName = 512;

}  // namespace headrace::plane
