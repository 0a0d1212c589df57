// Short vectors, by the compiler's vector extension: arithmetic and comparisons work on all lanes.
#pragma once

#include <cstdint>

#include "target.h"

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

/// Largest integer <= x in every lane. |x| must be below 2^31.
template <class P, class I>
ALIGNMASK_HOST_DEVICE I floor_to_int(P x) {
  const I truncated = __builtin_convertvector(x, I);
  // A true comparison is -1 in its lane.
  return truncated + __builtin_convertvector(__builtin_convertvector(truncated, P) > x, I);
}

template <class T, int kLanes>
ALIGNMASK_HOST_DEVICE T sum_of_lanes(Pack<T, kLanes> x) {
  T halves[kLanes];
  store(halves, x);
  if constexpr (kLanes == 1) {
    return halves[0];
  } else {
    using Half = Pack<T, kLanes / 2>;
    return sum_of_lanes<T, kLanes / 2>(load<Half>(halves) + load<Half>(halves + kLanes / 2));
  }
}

}  // namespace alignmask::ALIGNMASK_ISA
