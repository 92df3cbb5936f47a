#include "gather/convert.h"

#include <cassert>
#include <cfenv>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HEADRACE_X86 1
#include <immintrin.h>
#else
#define HEADRACE_X86 0
#endif

// Inlined into loops that are compiled for wider instruction sets, so that the compiler can vectorise them there.
#define HEADRACE_INLINE inline __attribute__((always_inline))

namespace headrace {
namespace {

template <class T>
HEADRACE_INLINE T load(const std::byte* address) {
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

template <class T>
HEADRACE_INLINE void store(std::byte* address, T value) {
  std::memcpy(address, &value, sizeof value);
}

// One value.  Floating-point numbers are handled as their bits: integer arithmetic knows no rounding mode.

HEADRACE_INLINE std::uint16_t bf16_of_fp32(std::uint32_t bits) {
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

HEADRACE_INLINE std::uint32_t fp32_of_bf16(std::uint16_t bits) { return static_cast<std::uint32_t>(bits) << 16; }

HEADRACE_INLINE std::uint16_t fp16_of_fp32(std::uint32_t bits) {
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {  // NaN
    half = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and more; what lies between 65520 and it rounds up to infinity below
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14 and more: normal in both formats
    half = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  } else if (magnitude >= 0x33000000u) {  // 2^-25 and more: subnormal, in units of 2^-24
    const std::uint32_t significand = (magnitude & 0x007fffffu) | 0x00800000u;
    const std::uint32_t shift = 126u - (magnitude >> 23);
    const std::uint32_t rest = significand & ((1u << shift) - 1u);
    const std::uint32_t tie = 1u << (shift - 1u);
    half = significand >> shift;
    if (rest > tie || (rest == tie && (half & 1u) != 0)) ++half;
  }
  return static_cast<std::uint16_t>(sign | half);
}

HEADRACE_INLINE std::uint32_t fp32_of_fp16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  std::uint32_t exponent = (bits >> 10) & 0x1fu;
  std::uint32_t fraction = bits & 0x03ffu;
  if (exponent == 0x1fu) return sign | 0x7f800000u | (fraction << 13) | (fraction != 0 ? 0x00400000u : 0u);
  if (exponent != 0) return sign | ((exponent + 112u) << 23) | (fraction << 13);
  if (fraction == 0) return sign;
  exponent = 113;  // subnormal: shift the leading one into its hidden place
  while ((fraction & 0x0400u) == 0) {
    fraction <<= 1;
    --exponent;
  }
  return sign | (exponent << 23) | ((fraction & 0x03ffu) << 13);
}

HEADRACE_INLINE float fp32_of_fp64(double value) { return static_cast<float>(value); }

// A run of values.

#define HEADRACE_LOOP(TARGET, NAME, FROM, TO, CONVERT)                                              \
  TARGET void NAME(const std::byte* __restrict from, std::byte* __restrict to, std::size_t count) { \
    for (std::size_t i = 0; i < count; ++i) {                                                       \
      store<TO>(to + i * sizeof(TO), CONVERT(load<FROM>(from + i * sizeof(FROM))));                 \
    }                                                                                               \
  }

// The one conversion that the processor's floating-point settings would touch: it runs under the standard ones.
#define HEADRACE_FP64_LOOP(TARGET, NAME)                                         \
  HEADRACE_LOOP(TARGET, NAME##_in_this_environment, double, float, fp32_of_fp64) \
  void NAME(const std::byte* from, std::byte* to, std::size_t count) {           \
    const StandardFloatingPoint standard;                                        \
    NAME##_in_this_environment(from, to, count);                                 \
  }

class StandardFloatingPoint {
 public:
  StandardFloatingPoint() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~StandardFloatingPoint() { std::fesetenv(&before_); }
  StandardFloatingPoint(const StandardFloatingPoint&) = delete;
  StandardFloatingPoint& operator=(const StandardFloatingPoint&) = delete;

 private:
  std::fenv_t before_;
};

struct Converters {
  Convert fp32_to_bf16, fp32_to_fp16, bf16_to_fp32, fp16_to_fp32, fp64_to_fp32;
};

HEADRACE_LOOP(, fp32_to_bf16_portable, std::uint32_t, std::uint16_t, bf16_of_fp32)
HEADRACE_LOOP(, fp32_to_fp16_portable, std::uint32_t, std::uint16_t, fp16_of_fp32)
HEADRACE_LOOP(, bf16_to_fp32_portable, std::uint16_t, std::uint32_t, fp32_of_bf16)
HEADRACE_LOOP(, fp16_to_fp32_portable, std::uint16_t, std::uint32_t, fp32_of_fp16)
HEADRACE_FP64_LOOP(, fp64_to_fp32_portable)

constexpr Converters kPortable{fp32_to_bf16_portable, fp32_to_fp16_portable, bf16_to_fp32_portable,
                               fp16_to_fp32_portable, fp64_to_fp32_portable};

#if HEADRACE_X86

#define HEADRACE_AVX2 __attribute__((target("avx2,f16c")))
#define HEADRACE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,prefer-vector-width=512")))

// AVX512-BF16 has an instruction for FP32 -> BF16, which is not used: it takes subnormal numbers for zero.
HEADRACE_LOOP(HEADRACE_AVX2, fp32_to_bf16_avx2, std::uint32_t, std::uint16_t, bf16_of_fp32)
HEADRACE_LOOP(HEADRACE_AVX2, bf16_to_fp32_avx2, std::uint16_t, std::uint32_t, fp32_of_bf16)
HEADRACE_FP64_LOOP(HEADRACE_AVX2, fp64_to_fp32_avx2)
HEADRACE_LOOP(HEADRACE_AVX512, fp32_to_bf16_avx512, std::uint32_t, std::uint16_t, bf16_of_fp32)
HEADRACE_LOOP(HEADRACE_AVX512, bf16_to_fp32_avx512, std::uint16_t, std::uint32_t, fp32_of_bf16)
HEADRACE_FP64_LOOP(HEADRACE_AVX512, fp64_to_fp32_avx512)

// F16C's instructions carry their rounding mode and neither flush nor ignore subnormal FP16 numbers (Intel SDM vol. 2,
// VCVTPS2PH, VCVTPH2PS).

HEADRACE_AVX2 void fp32_to_fp16_avx2(const std::byte* from, std::byte* to, std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 values = _mm256_loadu_ps(reinterpret_cast<const float*>(from + i * 4));
    const __m128i halves = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * 2), halves);
  }
  fp32_to_fp16_portable(from + i * 4, to + i * 2, count - i);
}

HEADRACE_AVX2 void fp16_to_fp32_avx2(const std::byte* from, std::byte* to, std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * 2));
    _mm256_storeu_ps(reinterpret_cast<float*>(to + i * 4), _mm256_cvtph_ps(halves));
  }
  fp16_to_fp32_portable(from + i * 2, to + i * 4, count - i);
}

// The forms without a mask start from an undefined register, at which GCC 12 warns (its bug 105593).
constexpr __mmask16 kAll = 0xffff;

HEADRACE_AVX512 void fp32_to_fp16_avx512(const std::byte* from, std::byte* to, std::size_t count) {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 values = _mm512_loadu_ps(from + i * 4);
    const __m256i halves = _mm512_maskz_cvtps_ph(kAll, values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * 2), halves);
  }
  fp32_to_fp16_avx2(from + i * 4, to + i * 2, count - i);
}

HEADRACE_AVX512 void fp16_to_fp32_avx512(const std::byte* from, std::byte* to, std::size_t count) {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * 2));
    _mm512_storeu_ps(to + i * 4, _mm512_maskz_cvtph_ps(kAll, halves));
  }
  fp16_to_fp32_avx2(from + i * 2, to + i * 4, count - i);
}

constexpr Converters kAvx2{fp32_to_bf16_avx2, fp32_to_fp16_avx2, bf16_to_fp32_avx2, fp16_to_fp32_avx2,
                           fp64_to_fp32_avx2};
constexpr Converters kAvx512{fp32_to_bf16_avx512, fp32_to_fp16_avx512, bf16_to_fp32_avx512, fp16_to_fp32_avx512,
                             fp64_to_fp32_avx512};

#endif  // HEADRACE_X86

const Converters& converters_for(InstructionSet instruction_set) {
#if HEADRACE_X86
  if (instruction_set == InstructionSet::kAvx512) return kAvx512;
  if (instruction_set == InstructionSet::kAvx2) return kAvx2;
#endif
  (void)instruction_set;
  return kPortable;
}

template <std::size_t kSizeBytes>
void copy(const std::byte* from, std::byte* to, std::size_t count) {
  std::memcpy(to, from, count * kSizeBytes);
}

Convert find_copy(std::size_t size_bytes) {
  switch (size_bytes) {
    case 1: return copy<1>;
    case 2: return copy<2>;
    case 4: return copy<4>;
    default: return copy<8>;
  }
}

std::vector<InstructionSet> detect_instruction_sets() {
  std::vector<InstructionSet> found;
#if HEADRACE_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx2 && has_avx512) found.push_back(InstructionSet::kAvx512);
  if (has_avx2) found.push_back(InstructionSet::kAvx2);
#endif
  found.push_back(InstructionSet::kPortable);
  return found;
}

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> found = detect_instruction_sets();
  return found;
}

Convert find_convert(Element from, Element to, InstructionSet instruction_set) {
  assert(is_convertible(from, to));
  if (from == to) return find_copy(size_of(from));
  const Converters& converters = converters_for(instruction_set);
  if (to == Element::kBf16) return converters.fp32_to_bf16;
  if (to == Element::kFp16) return converters.fp32_to_fp16;
  if (from == Element::kBf16) return converters.bf16_to_fp32;
  if (from == Element::kFp16) return converters.fp16_to_fp32;
  return converters.fp64_to_fp32;
}

}  // namespace headrace
