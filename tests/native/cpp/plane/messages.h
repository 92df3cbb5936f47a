// Requests as callers send them, and a look into answers.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plane/bytes.h"
#include "plane/wire/reader.h"
#include "plane/wire/writer.h"

namespace headrace::plane::testing {

inline std::string varint(std::uint64_t value) {
  std::string text;
  while (value >= 0x80) {
    text.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  text.push_back(static_cast<char>(value));
  return text;
}

inline std::string field(std::uint32_t number, std::string_view content) {
  return varint(wire::tag_of(number, wire::WireType::kLength)) + varint(content.size()) + std::string(content);
}

inline std::string number_field(std::uint32_t number, std::uint64_t value) {
  return varint(wire::tag_of(number, wire::WireType::kVarint)) + varint(value);
}

inline std::string bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// A PredictRequest with an FP32 input "x" of shape [rows, 2].
inline std::string predict_request(const std::vector<float>& values, std::string_view model = "models/m") {
  const std::string tensor =
      number_field(1, 1) + field(2, varint(values.size() / 2) + varint(2)) + field(3, bytes_of(values));
  return field(1, model) + field(2, field(1, "x") + field(2, tensor));
}

inline std::string stream_request(std::string_view id, std::string_view request) {
  return field(1, id) + field(2, request);
}

// A ModelInferRequest with the same input, raw.
inline std::string infer_request(const std::vector<float>& values, std::string_view id = "",
                                 std::string_view model = "m") {
  const std::string input = field(1, "x") + field(2, "FP32") + field(3, varint(values.size() / 2) + varint(2));
  return field(1, model) + field(3, id) + field(5, input) + field(7, bytes_of(values));
}

// In pieces of so many bytes.
inline Bytes message(std::string text, std::size_t piece_bytes = SIZE_MAX) {
  auto owner = std::make_shared<std::string>(std::move(text));
  Bytes bytes{owner, {}};
  const auto* data = reinterpret_cast<const std::byte*>(owner->data());
  for (std::size_t at = 0; at < owner->size(); at += piece_bytes) {
    bytes.pieces.push_back({data + at, std::min(piece_bytes, owner->size() - at)});
    if (piece_bytes == SIZE_MAX) break;
  }
  return bytes;
}

inline std::string text_of(const Block& block) { return {reinterpret_cast<const char*>(block.data()), block.size()}; }

// The first length-delimited field with this number, following a path of numbers; empty when there is none.
inline std::string find(std::string_view text, const std::vector<std::uint32_t>& path) {
  std::string content(text);
  for (const std::uint32_t number : path) {
    const std::vector<Piece> pieces{{reinterpret_cast<const std::byte*>(content.data()), content.size()}};
    wire::Reader reader(pieces);
    std::string found;
    while (!reader.is_at_end()) {
      wire::Tag tag;
      wire::Reader inner;
      if (!reader.read_tag(tag)) break;
      if (!tag.is(number, wire::WireType::kLength)) {
        if (!reader.skip(tag.type)) break;
        continue;
      }
      if (!reader.read_length(inner)) break;
      std::vector<Piece> parts;
      inner.append_to(parts);
      if (!parts.empty()) found.assign(reinterpret_cast<const char*>(parts[0].data), parts[0].size);
      break;
    }
    content = found;
  }
  return content;
}

inline std::vector<float> floats_of(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// Of a PredictResponse with one output.
inline std::vector<float> predicted(const std::string& response) { return floats_of(find(response, {2, 2, 3})); }

}  // namespace headrace::plane::testing
