// Single numbers of 64 bits in formats of 16, as NumPy and ml_dtypes make them, bit by bit.
#pragma once

#include <cstdint>
#include <cstring>

namespace headrace {

// Rounded once, to nearest, ties to even.  NaN keeps its sign and as much of its payload as there is room for.
inline std::uint16_t fp16_of_fp64(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 48) & 0x8000u);
  const std::uint64_t magnitude = bits & 0x7fffffffffffffffu;
  constexpr std::uint64_t kFraction = 0x000fffffffffffffu;
  std::uint64_t half = 0;
  if (magnitude > 0x7ff0000000000000u) {  // NaN
    half = 0x7c00u + ((magnitude & kFraction) >> 42);
    if (half == 0x7c00u) ++half;  // not infinity
  } else if (magnitude >= 0x40f0000000000000u) {  // 2^16 and more
    half = 0x7c00u;
  } else if (magnitude >= 0x3f10000000000000u) {  // 2^-14 and more: normal in both formats
    constexpr std::uint64_t kBias = std::uint64_t{1023 - 15} << 52;
    half = (magnitude - kBias + 0x000001ffffffffffu + ((magnitude >> 42) & 1u)) >> 42;
  } else if (magnitude >= 0x3e60000000000000u) {  // 2^-25 and more: subnormal, in units of 2^-24
    const std::uint64_t significand = (magnitude & kFraction) | (kFraction + 1);
    const std::uint64_t shift = 1051u - (magnitude >> 52);
    const std::uint64_t rest = significand & ((std::uint64_t{1} << shift) - 1u);
    const std::uint64_t tie = std::uint64_t{1} << (shift - 1u);
    half = significand >> shift;
    if (rest > tie || (rest == tie && (half & 1u) != 0)) ++half;
  }
  return static_cast<std::uint16_t>(sign | half);
}

// Rounded twice, by way of 32 bits; NaN keeps its sign only.
inline std::uint16_t bf16_of_fp64(double value) {
  const auto single = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | 0x7fc0u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace headrace
