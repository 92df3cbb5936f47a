#include "plane/wire/reader.h"

#include <algorithm>

namespace headrace::plane::wire {
namespace {

constexpr int kVarintBytes = 10;
constexpr std::uint32_t kLargestField = (1U << 29) - 1;

// The length of the character of UTF-8 that begins with `first`, and the range of its second byte; 0 for no such.
// Unicode 15, table 3-7.
struct Lead {
  std::size_t length;
  std::uint8_t low, high;
};

Lead lead_of(std::uint8_t first) {
  if (first < 0x80) return {1, 0, 0};
  if (first < 0xC2 || first > 0xF4) return {0, 0, 0};
  if (first < 0xE0) return {2, 0x80, 0xBF};
  if (first < 0xF0) {
    const std::uint8_t low = first == 0xE0 ? 0xA0 : 0x80;
    const std::uint8_t high = first == 0xED ? 0x9F : 0xBF;  // no halves of surrogate pairs
    return {3, low, high};
  }
  const std::uint8_t low = first == 0xF0 ? 0x90 : 0x80;
  const std::uint8_t high = first == 0xF4 ? 0x8F : 0xBF;
  return {4, low, high};
}

bool is_utf8(std::string_view text) {
  std::size_t i = 0;
  const auto byte = [&](std::size_t index) { return static_cast<std::uint8_t>(text[index]); };
  while (i < text.size()) {
    const Lead lead = lead_of(byte(i));
    if (lead.length == 0 || lead.length > text.size() - i) return false;
    if (lead.length > 1 && (byte(i + 1) < lead.low || byte(i + 1) > lead.high)) return false;
    for (std::size_t k = 2; k < lead.length; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return false;
    }
    i += lead.length;
  }
  return true;
}

}  // namespace

Reader::Reader(const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) left_ += piece.size;
  if (left_ == 0) return;
  next_ = pieces.data();
  while (here_ == 0) {
    at_ = next_->data;
    here_ = next_->size;
    ++next_;
  }
}

void Reader::advance(std::size_t size) {
  left_ -= size;
  while (size >= here_ && left_ > 0) {
    size -= here_;
    at_ = next_->data;
    here_ = next_->size;
    ++next_;
  }
  if (left_ == 0) {
    here_ = 0;
    return;
  }
  at_ += size;
  here_ -= size;
}

bool Reader::read_byte(std::uint8_t& byte) {
  if (left_ == 0) return false;
  byte = static_cast<std::uint8_t>(*at_);
  advance(1);
  return true;
}

bool Reader::read_varint_slowly(std::uint64_t& value) {
  value = 0;
  for (int i = 0; i < kVarintBytes; ++i) {
    std::uint8_t byte = 0;
    if (!read_byte(byte)) return false;
    if (i == kVarintBytes - 1 && byte > 1) return false;
    value |= static_cast<std::uint64_t>(byte & 0x7F) << (7 * i);
    if (byte < 0x80) return true;
  }
  return false;
}

bool Reader::read_tag(Tag& tag) {
  std::uint64_t value = 0;
  const std::size_t before = left_;
  if (!read_varint(value) || before - left_ > 5) return false;
  if (value > UINT32_MAX) return false;
  const auto field = static_cast<std::uint32_t>(value >> 3);
  const auto type = static_cast<std::uint8_t>(value & 7);
  if (field == 0 || field > kLargestField) return false;
  if (type > 5 || type == 3 || type == 4) return false;
  tag = {field, static_cast<WireType>(type)};
  return true;
}

bool Reader::read_fixed(void* value, std::size_t size) {
  if (left_ < size) return false;
  auto* to = static_cast<std::byte*>(value);
  while (size > 0) {
    const std::size_t step = std::min(size, here());
    std::memcpy(to, at_, step);
    to += step;
    size -= step;
    advance(step);
  }
  return true;
}

bool Reader::read_length(Reader& content) {
  std::uint64_t length = 0;
  return read_varint(length) && take(length, content);
}

bool Reader::take(std::uint64_t size, Reader& content) {
  if (size > left_) return false;
  content = *this;
  content.left_ = static_cast<std::size_t>(size);
  if (size > 0) advance(static_cast<std::size_t>(size));
  return true;
}

bool Reader::skip(WireType type) {
  switch (type) {
    case WireType::kVarint: {
      std::uint64_t ignored = 0;
      return read_varint(ignored);
    }
    case WireType::kFixed64: {
      std::uint64_t ignored = 0;
      return read_fixed64(ignored);
    }
    case WireType::kFixed32: {
      std::uint32_t ignored = 0;
      return read_fixed32(ignored);
    }
    case WireType::kLength: {
      Reader ignored;
      return read_length(ignored);
    }
  }
  return false;
}

std::optional<std::string_view> Reader::text(Scratch& scratch, std::size_t most) const {
  if (left_ > most) return std::nullopt;
  if (left_ == 0) return std::string_view{};
  std::string_view text(reinterpret_cast<const char*>(at_), left_);
  if (left_ > here_) {
    std::string& whole = scratch.emplace_back(left_, '\0');
    Reader rest = *this;
    rest.read_fixed(whole.data(), left_);
    text = whole;
  }
  if (!is_utf8(text)) return std::nullopt;
  return text;
}

void Reader::append_to(std::vector<Piece>& pieces) const {
  Reader rest = *this;
  while (rest.left_ > 0) {
    const std::size_t step = rest.here();
    pieces.push_back({rest.at_, step});
    rest.advance(step);
  }
}

}  // namespace headrace::plane::wire
