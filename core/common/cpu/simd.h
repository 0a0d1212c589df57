// Short vectors, by the compiler's vector extension: arithmetic and comparisons work on all lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/target.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace alignmask::ALIGNMASK_ISA {

template <class T, int kLanes>
struct PackOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T)), may_alias));
};

/// kLanes values of T (a power of two).
template <class T, int kLanes>
using Pack = typename PackOf<T, kLanes>::type;

template <class P, class T>
ALIGNMASK_HOST_DEVICE P load(const T* from) {
  P pack;
  __builtin_memcpy(&pack, from, sizeof(pack));
  return pack;
}

template <class P, class T>
ALIGNMASK_HOST_DEVICE void store(T* to, P pack) {
  __builtin_memcpy(to, &pack, sizeof(pack));
}

/// Loads and stores the first `count` of kLanes lanes (all, if there are more; none, if it is
/// negative) and touches no other memory. Lanes that are not loaded are 0.
template <class T, int kLanes>
class FirstLanes {
 public:
  using P = Pack<T, kLanes>;

  explicit FirstLanes(int count) {
    count_ = count < 0 ? 0 : count < kLanes ? count : kLanes;
#if defined(__AVX512VL__)
    mask_ = static_cast<__mmask16>((1u << count_) - 1);
#elif defined(__AVX2__)
    for (int i = 0; i < kLanes; ++i) mask_[i] = i < count_ ? -1 : 0;
#endif
  }

  ALIGNMASK_HOST_DEVICE P load(const T* from) const {
#if defined(__AVX512VL__)
    if constexpr (sizeof(P) == 64 && sizeof(T) == 4)
      return reinterpret_cast<P>(_mm512_maskz_loadu_epi32(mask_, from));
    if constexpr (sizeof(P) == 64 && sizeof(T) == 8)
      return reinterpret_cast<P>(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(mask_), from));
#elif defined(__AVX2__)
    if constexpr (sizeof(P) == 32 && sizeof(T) == 4)
      return reinterpret_cast<P>(_mm256_maskload_epi32(reinterpret_cast<const int*>(from),
                                                       reinterpret_cast<__m256i>(mask_)));
    if constexpr (sizeof(P) == 32 && sizeof(T) == 8)
      return reinterpret_cast<P>(_mm256_maskload_epi64(reinterpret_cast<const long long*>(from),
                                                       reinterpret_cast<__m256i>(mask_)));
#else
    P pack{};
    for (int i = 0; i < kLanes; ++i)
      if (i < count_) pack[i] = from[i];
    return pack;
#endif
  }

  ALIGNMASK_HOST_DEVICE void store(T* to, P pack) const {
#if defined(__AVX512VL__)
    if constexpr (sizeof(P) == 64 && sizeof(T) == 4)
      _mm512_mask_storeu_epi32(to, mask_, reinterpret_cast<__m512i>(pack));
    if constexpr (sizeof(P) == 64 && sizeof(T) == 8)
      _mm512_mask_storeu_epi64(to, static_cast<__mmask8>(mask_), reinterpret_cast<__m512i>(pack));
#else
    // A masked store of AVX2 is slow on some processors.
    constexpr int kHalf = kLanes / 2;
    const bool half = count_ >= kHalf;
    if (half) __builtin_memcpy(to, &pack, kHalf * sizeof(T));
    for (int i = 0; i < kHalf; ++i)
      if (i < count_ - (half ? kHalf : 0))
        to[i + (half ? kHalf : 0)] = pack[i + (half ? kHalf : 0)];
#endif
  }

 private:
  static_assert(kLanes * sizeof(T) == ALIGNMASK_VECTOR_BYTES, "a whole register");
  int count_;
#if defined(__AVX512VL__)
  __mmask16 mask_;
#elif defined(__AVX2__)
  Pack<std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>, kLanes> mask_;
#endif
};

/// Pairs (a, b), one after the other in `first` and then `second` -> all a, all b.
template <class P>
ALIGNMASK_HOST_DEVICE void split_pairs(P first, P second, P* a, P* b) {
  constexpr int kLanes = sizeof(P) / sizeof(first[0]);
  if constexpr (kLanes == 2) {
    *a = __builtin_shufflevector(first, second, 0, 2);
    *b = __builtin_shufflevector(first, second, 1, 3);
  } else if constexpr (kLanes == 4) {
    *a = __builtin_shufflevector(first, second, 0, 2, 4, 6);
    *b = __builtin_shufflevector(first, second, 1, 3, 5, 7);
  } else if constexpr (kLanes == 8) {
    *a = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14);
    *b = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15);
  } else {
    static_assert(kLanes == 16, "unknown number of lanes");
    *a = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,
                                 28, 30);
    *b = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27,
                                 29, 31);
  }
}

/// The inverse.
template <class P>
ALIGNMASK_HOST_DEVICE void join_pairs(P a, P b, P* first, P* second) {
  constexpr int kLanes = sizeof(P) / sizeof(a[0]);
  if constexpr (kLanes == 2) {
    *first = __builtin_shufflevector(a, b, 0, 2);
    *second = __builtin_shufflevector(a, b, 1, 3);
  } else if constexpr (kLanes == 4) {
    *first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    *second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  } else if constexpr (kLanes == 8) {
    *first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    *second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    static_assert(kLanes == 16, "unknown number of lanes");
    *first = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *second =
        __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}

/// Largest integer <= x in every lane. |x| must be below 2^31.
template <class P, class I>
ALIGNMASK_HOST_DEVICE I floor_to_int(P x) {
  const I truncated = __builtin_convertvector(x, I);
  // A true comparison is -1 in its lane.
  return truncated + __builtin_convertvector(__builtin_convertvector(truncated, P) > x, I);
}

/// Largest whole number <= x in every lane. |x| must be below 2^31.
template <class P>
ALIGNMASK_HOST_DEVICE P floor_of(P x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(P) == 64 && sizeof(x[0]) == 4)
    return reinterpret_cast<P>(_mm512_floor_ps(reinterpret_cast<__m512>(x)));
  if constexpr (sizeof(P) == 64 && sizeof(x[0]) == 8)
    return reinterpret_cast<P>(_mm512_floor_pd(reinterpret_cast<__m512d>(x)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(P) == 32 && sizeof(x[0]) == 4)
    return reinterpret_cast<P>(_mm256_floor_ps(reinterpret_cast<__m256>(x)));
  if constexpr (sizeof(P) == 32 && sizeof(x[0]) == 8)
    return reinterpret_cast<P>(_mm256_floor_pd(reinterpret_cast<__m256d>(x)));
#endif
  using Ints = Pack<std::int32_t, sizeof(P) / sizeof(x[0])>;
  return __builtin_convertvector(floor_to_int<P, Ints>(x), P);
}

/// The same numbers in lanes of twice the width.
template <int kLanes>
ALIGNMASK_HOST_DEVICE Pack<std::int64_t, kLanes> widen(Pack<std::int32_t, kLanes> x) {
#if defined(__AVX512F__)  // the compiler would take several instructions
  if constexpr (kLanes == 8)
    return reinterpret_cast<Pack<std::int64_t, kLanes>>(
        _mm512_cvtepi32_epi64(reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
  if constexpr (kLanes == 4)
    return reinterpret_cast<Pack<std::int64_t, kLanes>>(
        _mm256_cvtepi32_epi64(reinterpret_cast<__m128i>(x)));
#endif
  return __builtin_convertvector(x, Pack<std::int64_t, kLanes>);
}

/// The products in lanes of twice the width. `factor` must fit 32 bits.
template <int kLanes>
ALIGNMASK_HOST_DEVICE Pack<std::int64_t, kLanes> widen_times(Pack<std::int32_t, kLanes> x,
                                                             std::int64_t factor) {
  const Pack<std::int64_t, kLanes> wide = widen<kLanes>(x);
#if defined(__AVX512F__)
  if constexpr (kLanes == 8)
    return reinterpret_cast<Pack<std::int64_t, kLanes>>(
        _mm512_mul_epi32(reinterpret_cast<__m512i>(wide), _mm512_set1_epi64(factor)));
#elif defined(__AVX2__)
  if constexpr (kLanes == 4)
    return reinterpret_cast<Pack<std::int64_t, kLanes>>(
        _mm256_mul_epi32(reinterpret_cast<__m256i>(wide), _mm256_set1_epi64x(factor)));
#endif
  return wide * factor;
}

/// The lower and the upper half of the lanes.
template <class T, int kLanes>
ALIGNMASK_HOST_DEVICE Pack<T, kLanes / 2> lower_half(Pack<T, kLanes> x) {
  if constexpr (kLanes == 2) return Pack<T, 1>{x[0]};
  if constexpr (kLanes == 4) return __builtin_shufflevector(x, x, 0, 1);
  if constexpr (kLanes == 8) return __builtin_shufflevector(x, x, 0, 1, 2, 3);
  if constexpr (kLanes == 16) return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
}
template <class T, int kLanes>
ALIGNMASK_HOST_DEVICE Pack<T, kLanes / 2> upper_half(Pack<T, kLanes> x) {
  if constexpr (kLanes == 2) return Pack<T, 1>{x[1]};
  if constexpr (kLanes == 4) return __builtin_shufflevector(x, x, 2, 3);
  if constexpr (kLanes == 8) return __builtin_shufflevector(x, x, 4, 5, 6, 7);
  if constexpr (kLanes == 16) return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
}

template <class T, int kLanes>
ALIGNMASK_HOST_DEVICE T sum_of_lanes(Pack<T, kLanes> x) {
  if constexpr (kLanes == 1) {
    return x[0];
  } else {
    return sum_of_lanes<T, kLanes / 2>(lower_half<T, kLanes>(x) + upper_half<T, kLanes>(x));
  }
}

/// The largest lane; NaN counts as smaller than anything.
template <class T, int kLanes>
ALIGNMASK_HOST_DEVICE T max_of_lanes(Pack<T, kLanes> x) {
  if constexpr (kLanes == 1) {
    return x[0];
  } else {
    const auto low = lower_half<T, kLanes>(x), high = upper_half<T, kLanes>(x);
    return max_of_lanes<T, kLanes / 2>(low > high ? low : high);
  }
}

/// Four sums of lanes at once.
template <class T, int kLanes>
ALIGNMASK_HOST_DEVICE Pack<T, 4> sums_of_lanes(Pack<T, kLanes> a, Pack<T, kLanes> b,
                                               Pack<T, kLanes> c, Pack<T, kLanes> d) {
  if constexpr (kLanes < 4) {
    return Pack<T, 4>{sum_of_lanes<T, kLanes>(a), sum_of_lanes<T, kLanes>(b),
                      sum_of_lanes<T, kLanes>(c), sum_of_lanes<T, kLanes>(d)};
  } else {
    // Within every four lanes: (a0 + a2, b0 + b2, a1 + a3, b1 + b3), then (a, b, c, d).
    const auto pairs = [](Pack<T, kLanes> x, Pack<T, kLanes> y) {
      if constexpr (kLanes == 4)
        return __builtin_shufflevector(x, y, 0, 4, 1, 5) +
               __builtin_shufflevector(x, y, 2, 6, 3, 7);
      if constexpr (kLanes == 8)
        return __builtin_shufflevector(x, y, 0, 8, 1, 9, 4, 12, 5, 13) +
               __builtin_shufflevector(x, y, 2, 10, 3, 11, 6, 14, 7, 15);
      if constexpr (kLanes == 16)
        return __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13,
                                       29) +
               __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15,
                                       31);
    };
    const auto fours = [](Pack<T, kLanes> x, Pack<T, kLanes> y) {
      if constexpr (kLanes == 4)
        return __builtin_shufflevector(x, y, 0, 1, 4, 5) +
               __builtin_shufflevector(x, y, 2, 3, 6, 7);
      if constexpr (kLanes == 8)
        return __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13) +
               __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
      if constexpr (kLanes == 16)
        return __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28,
                                       29) +
               __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30,
                                       31);
    };
    const Pack<T, kLanes> sums = fours(pairs(a, b), pairs(c, d));
    if constexpr (kLanes == 4) return sums;
    if constexpr (kLanes == 8) return lower_half<T, 8>(sums) + upper_half<T, 8>(sums);
    if constexpr (kLanes == 16) {
      const Pack<T, 8> half = lower_half<T, 16>(sums) + upper_half<T, 16>(sums);
      return lower_half<T, 8>(half) + upper_half<T, 8>(half);
    }
  }
}

}  // namespace alignmask::ALIGNMASK_ISA
