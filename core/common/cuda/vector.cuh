// Neighbouring elements of a tensor as arithmetic values, read and written by one instruction where
// that is possible.
#pragma once

#include "device.cuh"
#include "ptx.cuh"

namespace alignmask {

ALIGNMASK_DEVICE float to_arithmetic(float x) { return x; }
ALIGNMASK_DEVICE double to_arithmetic(double x) { return x; }
ALIGNMASK_DEVICE float to_arithmetic(Half x) { return to_float(x); }
ALIGNMASK_DEVICE float to_arithmetic(BFloat16 x) { return to_float(x); }

ALIGNMASK_DEVICE void from_arithmetic(float x, float& to) { to = x; }
ALIGNMASK_DEVICE void from_arithmetic(double x, double& to) { to = x; }
ALIGNMASK_DEVICE void from_arithmetic(float x, Half& to) { to = to_half(x); }
ALIGNMASK_DEVICE void from_arithmetic(float x, BFloat16& to) { to = to_bfloat16(x); }

/// `kCount` elements of T that lie together, as memory has them: half precision stays packed until
/// it is needed.
template <class T, int kCount>
union Packed {
  static constexpr int kWords =
      sizeof(T) * kCount < 4 ? 1 : static_cast<int>(sizeof(T)) * kCount / 4;

  T element[kCount];
  Words<kWords> words;

  ALIGNMASK_DEVICE static Packed zero() {
    Packed packed;
#pragma unroll
    for (int i = 0; i < kWords; ++i) packed.words.word[i] = 0;
    return packed;
  }

  ALIGNMASK_DEVICE void unpack_to(Arithmetic<T> (&to)[kCount]) const {
    if constexpr (sizeof(T) == 2 && kCount > 1) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) unpack(words.word[i], T{}, to[2 * i], to[2 * i + 1]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = to_arithmetic(element[i]);
    }
  }
};

/// Reads `kCount` neighbouring elements of global memory that no thread writes; gives zeros if
/// `index` is negative. `from` is aligned to all of them.
template <class T, int kCount>
ALIGNMASK_DEVICE Packed<T, kCount> load(const T* from, int index = 0) {
  Packed<T, kCount> packed;
  if constexpr (kCount == 1) {
    packed = Packed<T, kCount>::zero();
    if (index >= 0) packed.element[0] = *from;
  } else {
    packed.words = load_constant<Packed<T, kCount>::kWords>(from, index);
  }
  return packed;
}

/// The same elements, which the compiler cannot have unpacked before: half precision in half as
/// many registers.
template <class T, int kCount>
ALIGNMASK_DEVICE Packed<T, kCount> still_packed(Packed<T, kCount> packed) {
  if constexpr (sizeof(T) == 2 && kCount > 1) hide_origin(packed.words);
  return packed;
}

/// Writes `kCount` neighbouring elements; `to` is aligned to all of them.
template <class T, int kCount>
ALIGNMASK_DEVICE void store(const Arithmetic<T> (&from)[kCount], T* to) {
  Packed<T, kCount> packed;
#pragma unroll
  for (int i = 0; i < kCount; ++i) from_arithmetic(from[i], packed.element[i]);
  if constexpr (kCount == 1) {
    *to = packed.element[0];
  } else {
    store_words(packed.words, to);
  }
}

/// Reads element `index` of a tensor that holds T, or, if `wide`, the arithmetic type of T.
template <class T>
ALIGNMASK_DEVICE Arithmetic<T> load_either(const void* tensor, Int64 index, bool wide) {
  using F = Arithmetic<T>;
  if constexpr (sizeof(T) == sizeof(F)) {
    return static_cast<const F*>(tensor)[index];
  } else {
    return wide ? static_cast<const F*>(tensor)[index]
                : to_arithmetic(static_cast<const T*>(tensor)[index]);
  }
}

/// Reads elements `index` and `index` + 1 in the same way, at once; they are aligned together.
template <class T>
ALIGNMASK_DEVICE void load_pair(const void* tensor, Int64 index, bool wide,
                                Arithmetic<T> (&to)[2]) {
  using F = Arithmetic<T>;
  if (sizeof(T) == sizeof(F) || wide) {
    load<F, 2>(static_cast<const F*>(tensor) + index).unpack_to(to);
  } else {
    load<T, 2>(static_cast<const T*>(tensor) + index).unpack_to(to);
  }
}

/// Reads element `index` of a tensor of any floating type.
template <class F>
ALIGNMASK_DEVICE F load_as(const void* tensor, Int64 index, ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return static_cast<F>(static_cast<const float*>(tensor)[index]);
    case ElementType::kDouble:
      return static_cast<F>(static_cast<const double*>(tensor)[index]);
    case ElementType::kHalf:
      return static_cast<F>(to_float(static_cast<const Half*>(tensor)[index]));
    default:
      return static_cast<F>(to_float(static_cast<const BFloat16*>(tensor)[index]));
  }
}

/// Reads element `index` of a tensor of integers of 64 bits, or, unless `wide`, of 32.
ALIGNMASK_DEVICE Int64 load_int(const void* tensor, Int64 index, bool wide) {
  return wide ? static_cast<const Int64*>(tensor)[index] : static_cast<const int*>(tensor)[index];
}

/// Writes element `index` of a tensor that holds T, or, if `wide`, the arithmetic type of T.
template <class T>
ALIGNMASK_DEVICE void store_either(Arithmetic<T> x, void* tensor, Int64 index, bool wide) {
  using F = Arithmetic<T>;
  if constexpr (sizeof(T) == sizeof(F)) {
    static_cast<F*>(tensor)[index] = x;
  } else if (wide) {
    static_cast<F*>(tensor)[index] = x;
  } else {
    from_arithmetic(x, static_cast<T*>(tensor)[index]);
  }
}

}  // namespace alignmask
