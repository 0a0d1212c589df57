// The smallest of many keys, without sorting them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/target.h"

namespace alignmask::ALIGNMASK_ISA {

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

/// Writes the indices of the `kept` smallest keys, ascending; among equal ones, the first are
/// taken. By digits: a histogram of the highest one says which keys can be the largest that is
/// kept, and only those are looked at again. `rest`: memory for as many keys. `histogram`: for
/// 2 · kDigits numbers.
template <class Key>
inline void select_smallest(const Key* keys, std::int32_t count, std::int32_t kept, Key* rest,
                            std::uint32_t* histogram, std::int32_t* index) {
  if (kept == 0) return;
  const Key* from = keys;
  Key largest = 0;                             // that is kept
  std::int32_t left = count, rank = kept - 1;  // its place among those left
  for (int shift = 8 * static_cast<int>(sizeof(Key)); shift > 0;) {
    const int bits = std::min(kDigitBits, shift);
    shift -= bits;
    const Key mask = (Key{1} << bits) - 1;
    const auto digit = [&](Key key) { return static_cast<std::uint32_t>(key >> shift & mask); };
    // Two histograms: keys are alike, and a number that has just been counted up is slow to read.
    std::uint32_t* const other = histogram + kDigits;
    std::fill_n(histogram, 2 * kDigits, 0u);
    std::int32_t i = 0;
    for (; i + 2 <= left; i += 2) {
      ++histogram[digit(from[i])];
      ++other[digit(from[i + 1])];
    }
    if (i < left) ++histogram[digit(from[i])];
    std::uint32_t found = 0;
    for (;; ++found) {
      const auto here = static_cast<std::int32_t>(histogram[found] + other[found]);
      if (rank < here) break;
      rank -= here;
    }
    largest |= static_cast<Key>(found) << shift;
    std::int32_t next = 0;
    for (i = 0; i < left; ++i) {
      const Key key = from[i];
      rest[next] = key;
      next += digit(key) == found;
    }
    from = rest;
    left = next;
  }
  std::int32_t equals = rank + 1, next = 0;  // that are kept
  for (std::int32_t i = 0; i < count; ++i) {
    index[next] = i;
    const bool equal = keys[i] == largest && equals > 0;
    equals -= equal;
    next += keys[i] < largest || equal;
    if (next == kept) break;
  }
}

}  // namespace alignmask::ALIGNMASK_ISA
