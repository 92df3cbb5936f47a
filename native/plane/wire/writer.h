// Writes protobuf messages: measure first, then write once into memory that is large enough.
// https://protobuf.dev/programming-guides/encoding/
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "plane/wire/reader.h"

namespace headrace::plane::wire {

constexpr std::size_t size_of_varint(std::uint64_t value) {
  std::size_t size = 1;
  while (value >= 0x80) {
    value >>= 7;
    ++size;
  }
  return size;
}

constexpr std::uint64_t tag_of(std::uint32_t field, WireType type) {
  return (static_cast<std::uint64_t>(field) << 3) | static_cast<std::uint64_t>(type);
}

constexpr std::size_t size_of_tag(std::uint32_t field) { return size_of_varint(static_cast<std::uint64_t>(field) << 3); }

// A length-delimited field with so much content.
constexpr std::size_t size_of_field(std::uint32_t field, std::size_t content) {
  return size_of_tag(field) + size_of_varint(content) + content;
}

constexpr std::size_t size_of_varint_field(std::uint32_t field, std::uint64_t value) {
  return size_of_tag(field) + size_of_varint(value);
}

class Writer {
 public:
  Writer(std::byte* at, std::size_t size) : at_(at), end_(at + size) {}

  std::byte* at() const { return at_; }
  std::size_t room() const { return static_cast<std::size_t>(end_ - at_); }

  void varint(std::uint64_t value) {
    assert(room() >= size_of_varint(value));
    while (value >= 0x80) {
      *at_++ = static_cast<std::byte>(value | 0x80);
      value >>= 7;
    }
    *at_++ = static_cast<std::byte>(value);
  }

  void tag(std::uint32_t field, WireType type) { varint(tag_of(field, type)); }

  void varint_field(std::uint32_t field, std::uint64_t value) {
    tag(field, WireType::kVarint);
    varint(value);
  }

  // A length-delimited field whose content follows.
  void length(std::uint32_t field, std::size_t content) {
    tag(field, WireType::kLength);
    varint(content);
  }

  void text(std::uint32_t field, std::string_view text) {
    length(field, text.size());
    bytes(text.data(), text.size());
  }

  void bytes(const void* data, std::size_t size) {
    assert(room() >= size);
    if (size > 0) std::memcpy(at_, data, size);
    at_ += size;
  }

  // Memory that is written later.
  std::byte* reserve(std::size_t size) {
    assert(room() >= size);
    std::byte* reserved = at_;
    at_ += size;
    return reserved;
  }

 private:
  std::byte* at_;
  std::byte* end_;
};

}  // namespace headrace::plane::wire
