// Reads protobuf messages where they lie, in pieces, without copying them.
//
// Every read checks bounds first and says whether it succeeded; a reader that has failed must not be used further.  Each
// read takes at least one byte, so work is bounded by the size of the message.  It is stricter than protobuf where a
// message is odd (overlong tags, groups): the complete server reads those.
// https://protobuf.dev/programming-guides/encoding/
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plane/bytes.h"

namespace headrace::plane::wire {

enum class WireType : std::uint8_t { kVarint = 0, kFixed64 = 1, kLength = 2, kFixed32 = 5 };

struct Tag {
  std::uint32_t field = 0;
  WireType type = WireType::kVarint;

  bool is(std::uint32_t other_field, WireType other_type) const { return field == other_field && type == other_type; }
};

// Keeps texts that lie in two pieces, put together.
using Scratch = std::deque<std::string>;

class Reader {
 public:
  Reader() = default;
  // The pieces must live as long as the reader, and what they name as long as what was read from it.
  explicit Reader(const std::vector<Piece>& pieces);

  std::size_t left() const { return left_; }
  bool is_at_end() const { return left_ == 0; }

  // Fails on field 0, groups, and tags of more than 32 bits.
  bool read_tag(Tag& tag);
  // Fails when it does not fit into 64 bits.
  bool read_varint(std::uint64_t& value);
  bool read_fixed32(std::uint32_t& value) { return read_fixed(&value, sizeof value); }
  bool read_fixed64(std::uint64_t& value) { return read_fixed(&value, sizeof value); }
  // What has a length before it: a reader of exactly that.
  bool read_length(Reader& content);
  // A reader of the next so many bytes.
  bool take(std::uint64_t size, Reader& content);
  // A field that is not known.
  bool skip(WireType type);

  // What is left, as text: in place, or in `scratch` when it lies in several pieces.  Nothing when it is not UTF-8 or
  // is longer than `most`.
  std::optional<std::string_view> text(Scratch& scratch, std::size_t most) const;
  // What is left, appended piece by piece.
  void append_to(std::vector<Piece>& pieces) const;

 private:
  bool read_varint_slowly(std::uint64_t& value);
  bool read_fixed(void* value, std::size_t size);
  bool read_byte(std::uint8_t& byte);
  void advance(std::size_t size);
  // Bytes that can be read at `at_` without looking further.
  std::size_t here() const { return here_ < left_ ? here_ : left_; }

  const Piece* next_ = nullptr;  // the piece after this one
  const std::byte* at_ = nullptr;
  std::size_t here_ = 0;  // bytes of this piece
  std::size_t left_ = 0;  // bytes of the message; never more than its pieces hold
};

inline bool Reader::read_varint(std::uint64_t& value) {
  if (here() > 0) {
    const auto first = static_cast<std::uint8_t>(*at_);
    if (first < 0x80) {
      value = first;
      advance(1);
      return true;
    }
  }
  return read_varint_slowly(value);
}

}  // namespace headrace::plane::wire
