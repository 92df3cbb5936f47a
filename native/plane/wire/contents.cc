#include "plane/wire/contents.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>

#include "gather/narrow.h"
#include "plane/wire/tensors.h"

namespace headrace::plane::wire {
namespace {

constexpr std::uint32_t kLastContentsField = 8;  // of InferTensorContents
constexpr std::uint32_t kValuesField = 1;        // of FloatValues and IntValues

// `Wide` is the type on the wire, which cuts what is longer, as protobuf does.
template <class Wide, class Narrow>
bool put(std::uint64_t value, std::byte* to) {
  const auto wide = static_cast<Wide>(value);
  if (wide < static_cast<Wide>(std::numeric_limits<Narrow>::min()) ||
      wide > static_cast<Wide>(std::numeric_limits<Narrow>::max())) {
    return false;
  }
  const auto narrow = static_cast<Narrow>(wide);
  std::memcpy(to, &narrow, sizeof narrow);
  return true;
}

bool put_bool(std::uint64_t value, std::byte* to) {
  *to = value != 0 ? std::byte{1} : std::byte{0};
  return true;
}

using Put = bool (*)(std::uint64_t, std::byte*);

// Nothing for elements that do not travel as varints.
Put put_of(Element element) {
  switch (element) {
    case Element::kBool: return &put_bool;
    case Element::kInt8: return &put<std::int32_t, std::int8_t>;
    case Element::kInt16: return &put<std::int32_t, std::int16_t>;
    case Element::kInt32: return &put<std::int32_t, std::int32_t>;
    case Element::kInt64: return &put<std::int64_t, std::int64_t>;
    case Element::kUint8: return &put<std::uint32_t, std::uint8_t>;
    case Element::kUint16: return &put<std::uint32_t, std::uint16_t>;
    case Element::kUint32: return &put<std::uint32_t, std::uint32_t>;
    case Element::kUint64: return &put<std::uint64_t, std::uint64_t>;
    default: return nullptr;
  }
}

// Any integer travels as 64 bits with a sign.
template <class Narrow>
bool put_int(std::uint64_t value, std::byte* to) {
  const auto wide = static_cast<std::int64_t>(value);
  if constexpr (sizeof(Narrow) < sizeof wide) {
    if (wide < std::int64_t{std::numeric_limits<Narrow>::min()} ||
        wide > std::int64_t{std::numeric_limits<Narrow>::max()}) {
      return false;
    }
  } else if (std::is_unsigned_v<Narrow> && wide < 0) {
    return false;
  }
  const auto narrow = static_cast<Narrow>(wide);
  std::memcpy(to, &narrow, sizeof narrow);
  return true;
}

bool put_flag(std::uint64_t value, std::byte* to) { return value <= 1 && put_bool(value, to); }

// Nothing for floats.
Put put_int_of(Element element) {
  switch (element) {
    case Element::kBool: return &put_flag;
    case Element::kInt8: return &put_int<std::int8_t>;
    case Element::kInt16: return &put_int<std::int16_t>;
    case Element::kInt32: return &put_int<std::int32_t>;
    case Element::kInt64: return &put_int<std::int64_t>;
    case Element::kUint8: return &put_int<std::uint8_t>;
    case Element::kUint16: return &put_int<std::uint16_t>;
    case Element::kUint32: return &put_int<std::uint32_t>;
    case Element::kUint64: return &put_int<std::uint64_t>;
    default: return nullptr;
  }
}

// Reads the one field that may be there, of those that there are; fails when it is there in several runs, or not packed.
bool find_run(Reader contents, std::uint32_t field, std::uint32_t last_field, Reader& run) {
  bool has_run = false;
  while (!contents.is_at_end()) {
    Tag tag;
    Reader content;
    if (!contents.read_tag(tag)) return false;
    if (tag.field > last_field) {
      if (!contents.skip(tag.type)) return false;
      continue;
    }
    if (tag.field != field || tag.type != WireType::kLength || has_run || !contents.read_length(run)) return false;
    has_run = true;
  }
  return has_run;
}

bool decode(Reader run, std::size_t count, Put put_element, Tensor& tensor) {
  if (run.left() < count) return false;  // each takes at least one byte: so nothing large is made for a small message
  const std::size_t size = size_of(tensor.element);
  std::byte* const to = tensor.make_room(count);
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t value = 0;
    if (!run.read_varint(value) || !put_element(value, to + i * size)) return false;
  }
  return run.is_at_end();
}

// Bits of the narrower type, and whether they are those of infinity.
struct Fp32 {
  using Bits = std::uint32_t;
  static Bits of(double wide) {
    const auto value = static_cast<float>(wide);
    Bits bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }
  static bool is_infinite(Bits bits) { return (bits & 0x7fffffffu) == 0x7f800000u; }
};

struct Fp16 {
  using Bits = std::uint16_t;
  static Bits of(double wide) { return fp16_of_fp64(wide); }
  static bool is_infinite(Bits bits) { return (bits & 0x7fffu) == 0x7c00u; }
};

struct Bf16 {
  using Bits = std::uint16_t;
  static Bits of(double wide) { return bf16_of_fp64(wide); }
  static bool is_infinite(Bits bits) { return (bits & 0x7fffu) == 0x7f80u; }
};

template <class Narrow>
bool narrow(Reader run, std::size_t count, Tensor& tensor) {
  if (run.left() != count * sizeof(double)) return false;
  std::byte* const to = tensor.make_room(count);
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t wide_bits = 0;
    double wide = 0;
    run.read_fixed64(wide_bits);
    std::memcpy(&wide, &wide_bits, sizeof wide);
    const typename Narrow::Bits bits = Narrow::of(wide);
    if (Narrow::is_infinite(bits) != std::isinf(wide)) return false;  // too large
    std::memcpy(to + i * sizeof bits, &bits, sizeof bits);
  }
  return true;
}

}  // namespace

std::uint32_t contents_field(Element element) {
  switch (element) {
    case Element::kBool: return 1;
    case Element::kInt8:
    case Element::kInt16:
    case Element::kInt32: return 2;
    case Element::kInt64: return 3;
    case Element::kUint8:
    case Element::kUint16:
    case Element::kUint32: return 4;
    case Element::kUint64: return 5;
    case Element::kFp32: return 6;
    case Element::kFp64: return 7;
    default: return 0;
  }
}

bool take_contents(Reader contents, Tensor& tensor) {
  const std::uint32_t field = contents_field(tensor.element);
  const std::optional<std::size_t> count = count_elements(tensor.shape, tensor.element);
  Reader run;
  if (field == 0 || !count || !find_run(contents, field, kLastContentsField, run)) return false;
  if (const Put put_element = put_of(tensor.element)) return decode(run, *count, put_element, tensor);
  return take_bytes(run, tensor);
}

bool take_floats(Reader values, Tensor& tensor) {
  const std::optional<std::size_t> count = count_elements(tensor.shape, tensor.element);
  Reader run;
  if (!count || !find_run(values, kValuesField, kValuesField, run)) return false;
  switch (tensor.element) {
    case Element::kFp64: return take_bytes(run, tensor);
    case Element::kFp32: return narrow<Fp32>(run, *count, tensor);
    case Element::kFp16: return narrow<Fp16>(run, *count, tensor);
    case Element::kBf16: return narrow<Bf16>(run, *count, tensor);
    default: return false;
  }
}

bool take_ints(Reader values, Tensor& tensor) {
  const Put put_element = put_int_of(tensor.element);
  const std::optional<std::size_t> count = count_elements(tensor.shape, tensor.element);
  Reader run;
  if (put_element == nullptr || !count || !find_run(values, kValuesField, kValuesField, run)) return false;
  return decode(run, *count, put_element, tensor);
}

}  // namespace headrace::plane::wire
