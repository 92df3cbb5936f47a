// The element types of tensors, as the contract names them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace headrace {

enum class Element : std::uint8_t {
  kFp32, kFp64, kFp16, kBf16, kFp8E4M3, kFp8E5M2,
  kInt8, kInt16, kInt32, kInt64, kUint8, kUint16, kUint32, kUint64, kBool,
};

struct ElementTraits {
  std::string_view name;
  std::size_t size_bytes;
};

// In the order of `Element`.
inline constexpr std::array<ElementTraits, 15> kElements{{
    {"FP32", 4}, {"FP64", 8}, {"FP16", 2}, {"BF16", 2}, {"FP8_E4M3", 1}, {"FP8_E5M2", 1},
    {"INT8", 1}, {"INT16", 2}, {"INT32", 4}, {"INT64", 8},
    {"UINT8", 1}, {"UINT16", 2}, {"UINT32", 4}, {"UINT64", 8}, {"BOOL", 1},
}};

constexpr std::string_view name_of(Element element) { return kElements[static_cast<std::size_t>(element)].name; }

constexpr std::size_t size_of(Element element) { return kElements[static_cast<std::size_t>(element)].size_bytes; }

constexpr std::optional<Element> element_named(std::string_view name) {
  for (std::size_t i = 0; i < kElements.size(); ++i) {
    if (kElements[i].name == name) return static_cast<Element>(i);
  }
  return std::nullopt;
}

// Whether elements of one type can be written as another: as they are, or by one of the five conversions
// FP32 -> FP32, BF16, FP16 and BF16, FP16, FP64 -> FP32.
constexpr bool is_convertible(Element from, Element to) {
  if (from == to) return true;
  if (from == Element::kFp32) return to == Element::kBf16 || to == Element::kFp16;
  return to == Element::kFp32 && (from == Element::kBf16 || from == Element::kFp16 || from == Element::kFp64);
}

}  // namespace headrace
