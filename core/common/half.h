// Conversions of half precision. Arithmetic never happens in it: it is read into float and rounded
// (to nearest even) back.
#pragma once

#include <cstdint>
#include <cstring>

#include "element.h"
#include "target.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace alignmask {

namespace ALIGNMASK_ISA {

template <class To, class From>
ALIGNMASK_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

ALIGNMASK_HOST_DEVICE float to_float(BFloat16 x) {
  return bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

ALIGNMASK_HOST_DEVICE float to_float(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Exponent and mantissa move to float's place; the factor 2^112 corrects the exponent's bias and
  // makes subnormals right.
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(rest) * bit_cast<float>(std::uint32_t{(127 + 112) << 23});
  const std::uint32_t magnitude =
      rest >= (0x7c00u << 13) ? rest | 0x7f800000u : bit_cast<std::uint32_t>(scaled);
  return bit_cast<float>(sign | magnitude);
#endif
}

ALIGNMASK_HOST_DEVICE BFloat16 to_bfloat16(float x) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(x != x ? 0x7fc0u : rounded)};
}

ALIGNMASK_HOST_DEVICE Half to_half(float x) {
#if defined(__F16C__)
  // As _cvtss_sh, which older clangs have as a macro that is C, not C++.
  const __m128i halves = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
  return {static_cast<std::uint16_t>(_mm_cvtsi128_si32(halves))};
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity from 65520 on
  } else if (magnitude < 0x38800000u) {
    // Below half's smallest normal: adding 0.5 leaves the subnormal's bits, rounded by the
    // addition, at the bottom.
    half = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
#endif
}

/// Element of any floating type as float or double, and back.
template <class To, class From>
struct Convert {
  static ALIGNMASK_HOST_DEVICE To apply(From x) { return static_cast<To>(x); }
};
template <class To>
struct Convert<To, Half> {
  static ALIGNMASK_HOST_DEVICE To apply(Half x) { return static_cast<To>(to_float(x)); }
};
template <class To>
struct Convert<To, BFloat16> {
  static ALIGNMASK_HOST_DEVICE To apply(BFloat16 x) { return static_cast<To>(to_float(x)); }
};
template <class From>
struct Convert<Half, From> {
  static ALIGNMASK_HOST_DEVICE Half apply(From x) { return to_half(static_cast<float>(x)); }
};
template <class From>
struct Convert<BFloat16, From> {
  static ALIGNMASK_HOST_DEVICE BFloat16 apply(From x) { return to_bfloat16(static_cast<float>(x)); }
};

template <class To, class From>
ALIGNMASK_HOST_DEVICE To convert(From x) {
  return Convert<To, From>::apply(x);
}

}  // namespace ALIGNMASK_ISA
}  // namespace alignmask
