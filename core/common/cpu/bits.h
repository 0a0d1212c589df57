// Booleans packed into bits: 64 pixels to a word, the first in the lowest bit.
#pragma once

#include <cstdint>

#include "common/target.h"
#include "simd.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace alignmask::ALIGNMASK_ISA {

constexpr int kWordBits = 64;

ALIGNMASK_HOST_DEVICE std::int64_t words_for(std::int64_t bits) {
  return (bits + kWordBits - 1) / kWordBits;
}

/// Bit i: from[i] is not zero.
ALIGNMASK_HOST_DEVICE std::uint64_t nonzero_word(const std::uint8_t* from) {
#if defined(__AVX512BW__)
  return _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(from), _mm512_setzero_si512());
#elif defined(__AVX2__)
  std::uint64_t word = 0;
  for (int i = 0; i < 2; ++i) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32 * i));
    const auto zero = static_cast<std::uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
    word |= static_cast<std::uint64_t>(~zero) << (32 * i);
  }
  return word;
#elif defined(__SSE2__)
  std::uint64_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
    const auto zero =
        static_cast<std::uint64_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128())));
    word |= (~zero & 0xffffu) << (16 * i);
  }
  return word;
#else
  std::uint64_t word = 0;
  for (int i = 0; i < kWordBits; ++i) word |= static_cast<std::uint64_t>(from[i] != 0) << i;
  return word;
#endif
}

/// Bit i: lane i is greater than the threshold's.
template <class F, int kLanes>
ALIGNMASK_HOST_DEVICE std::uint64_t greater_bits(Pack<F, kLanes> value, Pack<F, kLanes> threshold) {
#if defined(__AVX512F__)
  if constexpr (sizeof(value) == 64 && sizeof(F) == 4)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(value), reinterpret_cast<__m512>(threshold),
                              _CMP_GT_OQ);
  if constexpr (sizeof(value) == 64 && sizeof(F) == 8)
    return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(value),
                              reinterpret_cast<__m512d>(threshold), _CMP_GT_OQ);
#endif
  const auto mask = value > threshold;
#if defined(__AVX__)
  if constexpr (sizeof(mask) == 32 && sizeof(F) == 4)
    return static_cast<std::uint64_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
  if constexpr (sizeof(mask) == 32 && sizeof(F) == 8)
    return static_cast<std::uint64_t>(_mm256_movemask_pd(reinterpret_cast<__m256d>(mask)));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(mask) == 16 && sizeof(F) == 4)
    return static_cast<std::uint64_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
  if constexpr (sizeof(mask) == 16 && sizeof(F) == 8)
    return static_cast<std::uint64_t>(_mm_movemask_pd(reinterpret_cast<__m128d>(mask)));
#endif
  std::uint64_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<std::uint64_t>(mask[i] != 0) << i;
  return bits;
}

/// Bits of a whole word: value(i) for i = 0, kLanes, 2 kLanes, ... gives a pack of kLanes values;
/// set where > threshold.
template <class F, class Value>
ALIGNMASK_HOST_DEVICE std::uint64_t greater_word(F threshold, Value value) {
  constexpr int kLanes = ALIGNMASK_VECTOR_BYTES / sizeof(F);
  using Lanes = Pack<F, kLanes>;
  std::uint64_t word = 0;
  for (int i = 0; i < kWordBits; i += kLanes)
    word |= greater_bits<F, kLanes>(value(i), Lanes{} + threshold) << i;
  return word;
}

ALIGNMASK_HOST_DEVICE std::int64_t count_bits(const std::uint64_t* words, std::int64_t count) {
  std::int64_t bits = 0;
  for (std::int64_t i = 0; i < count; ++i) bits += __builtin_popcountll(words[i]);
  return bits;
}

ALIGNMASK_HOST_DEVICE std::int64_t count_common_bits(const std::uint64_t* a, const std::uint64_t* b,
                                                     std::int64_t count) {
  std::int64_t bits = 0;
  for (std::int64_t i = 0; i < count; ++i) bits += __builtin_popcountll(a[i] & b[i]);
  return bits;
}

}  // namespace alignmask::ALIGNMASK_ISA
