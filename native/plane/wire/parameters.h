// Entries of ModelInferResponse.parameters, written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "plane/wire/writer.h"

namespace headrace::plane::wire {

inline constexpr std::uint32_t kParameters = 4;
// parameters["triton_final_response"].bool_param = true: the only answer that its request gets.
inline constexpr std::string_view kFinalResponse("\x22\x1b\x0a\x15triton_final_response\x12\x02\x08\x01", 29);

inline void write_number_parameter(Writer& writer, std::string_view key, std::uint64_t number) {
  const std::size_t value = size_of_varint_field(2, number);
  writer.length(kParameters, size_of_field(1, key.size()) + size_of_field(2, value));
  writer.text(1, key);
  writer.length(2, value);
  writer.varint_field(2, number);
}

inline std::size_t size_of_text_parameter(std::string_view key, std::string_view text) {
  return size_of_field(kParameters,
                       size_of_field(1, key.size()) + size_of_field(2, size_of_field(3, text.size())));
}

inline void write_text_parameter(Writer& writer, std::string_view key, std::string_view text) {
  const std::size_t value = size_of_field(3, text.size());
  writer.length(kParameters, size_of_field(1, key.size()) + size_of_field(2, value));
  writer.text(1, key);
  writer.length(2, value);
  writer.text(3, text);
}

}  // namespace headrace::plane::wire
