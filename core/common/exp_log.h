// e^x and log(1 + x) where the losses need them, for scalars and for packs of lanes. Their relative
// error is a few units in the last place; NaN gives NaN.
#pragma once

#include "target.h"
#if !defined(__CUDACC__) && !defined(ALIGNMASK_SIMT)
#include <cstdint>
#include <type_traits>
#endif

namespace alignmask::ALIGNMASK_ISA {

#if defined(__CUDACC__) || defined(ALIGNMASK_SIMT)

ALIGNMASK_HOST_DEVICE float exp_of_negative(float x) { return ::expf(x); }
ALIGNMASK_HOST_DEVICE double exp_of_negative(double x) { return ::exp(x); }
ALIGNMASK_HOST_DEVICE float log1p_of_unit(float x) { return ::log1pf(x); }
ALIGNMASK_HOST_DEVICE double log1p_of_unit(double x) { return ::log1p(x); }

#else

template <class P, class = void>
struct ElementOf {
  using type = P;
};
template <class P>
struct ElementOf<P, std::enable_if_t<!std::is_arithmetic_v<P> > > {
  using type = std::remove_reference_t<decltype(std::declval<P&>()[0])>;
};
/// Scalar type of a scalar or of a pack.
template <class P>
using Element = typename ElementOf<P>::type;

/// Integers of the same width, in as many lanes.
template <class P>
using SameBits = decltype(P{} < P{});

/// e^x for x <= 0.
template <class P>
ALIGNMASK_HOST_DEVICE P exp_of_negative(P x) {
  using T = Element<P>;
  constexpr bool kDouble = sizeof(T) == 8;
  using Int = std::conditional_t<kDouble, std::int64_t, std::int32_t>;
  using Ints = std::conditional_t<std::is_arithmetic_v<P>, Int, SameBits<P> >;
  constexpr int kMantissa = kDouble ? 52 : 23;
  constexpr Int kBias = kDouble ? 1023 : 127;
  const P lowest = P{} + T(kDouble ? -746 : -104);  // e^x is 0 from here on
  x = x < lowest ? lowest : x;
  // x = n ln 2 + r. Adding 1.5 · 2^mantissa rounds to an integer, which then is in the lowest bits.
  const P magic = P{} + T(3) * T(Int{1} << (kMantissa - 1));
  const P shifted = x * T(1.4426950408889634074) + magic;
  const P n = shifted - magic;
  const P r = (x - n * T(kDouble ? 0x1.62e42fefa3800p-1 : 0.693359375)) -
              n * T(kDouble ? 0x1.ef35793c76730p-45 : -2.12194440054690583e-4);
  constexpr int kDegree = kDouble ? 13 : 7;
  T factorial = 1;
  for (int k = 2; k <= kDegree; ++k) factorial *= T(k);
  P sum = P{} + 1 / factorial;
  for (int k = kDegree; k > 0; --k) sum = sum * r + 1 / (factorial /= T(k));
  // 2^n in two steps: it may be subnormal.
  Ints bits, base;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  __builtin_memcpy(&base, &magic, sizeof(base));
  const Ints exponent = bits - base, first = exponent >> 1, second = exponent - first;
  // (Of NaN, bits are lost at the top, which unsigned integers do not mind. The sum is NaN
  // already.)
  using Bits = std::conditional_t<std::is_arithmetic_v<P>, std::make_unsigned_t<Int>, Ints>;
  const Bits scale_bits[2] = {static_cast<Bits>(first + kBias) << kMantissa,
                              static_cast<Bits>(second + kBias) << kMantissa};
  P scales[2];
  __builtin_memcpy(scales, scale_bits, sizeof(scales));
  return sum * scales[0] * scales[1];
}

/// log(1 + x) for 0 <= x <= 1: 2 artanh(z) with z = x / (2 + x) <= 1/3, as a series in z².
template <class P>
ALIGNMASK_HOST_DEVICE P log1p_of_unit(P x) {
  using T = Element<P>;
  constexpr int kTerms = sizeof(T) == 8 ? 17 : 8;
  const P z = x / (x + T(2)), z2 = z * z;
  P sum = P{} + T(1) / T(2 * kTerms - 1);
  for (int k = kTerms - 1; k > 0; --k) sum = sum * z2 + T(1) / T(2 * k - 1);
  return T(2) * z * sum;
}

#endif

}  // namespace alignmask::ALIGNMASK_ISA
