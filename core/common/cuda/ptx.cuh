// What CUDA C++ cannot express portably. The only file with PTX; every function also says in C++
// what it does.
#pragma once

#include "device.cuh"

#if defined(ALIGNMASK_SIMT)
#include "common/half.h"
#endif

namespace alignmask {

/// `kWords` times four bytes of memory, moved by one instruction.
template <int kWords>
struct alignas(4 * kWords) Words {
  UInt32 word[kWords];
};

/// Reads from global memory that no thread writes while the kernel runs; gives zeros if `index` is
/// negative. `from` is aligned to the size read. (One piece of assembly, because compilers load
/// elsewhere and copy.)
template <int kWords>
ALIGNMASK_DEVICE Words<kWords> load_constant(const void* from, int index = 0) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4, "no such load");
  Words<kWords> to;
#if defined(ALIGNMASK_SIMT)
  if (index < 0) return {};
  simt::check_alignment(from, sizeof(to));
  __builtin_memcpy(&to, from, sizeof(to));
#else
  if constexpr (kWords == 1) {
    asm("{.reg .pred p; setp.ge.s32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.b32 %0, [%1];}"
        : "=&r"(to.word[0])
        : "l"(from), "r"(index));
  } else if constexpr (kWords == 2) {
    asm("{.reg .pred p; setp.ge.s32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.nc.v2.b32 "
        "{%0, %1}, [%2];}"
        : "=&r"(to.word[0]), "=&r"(to.word[1])
        : "l"(from), "r"(index));
  } else {
    asm("{.reg .pred p; setp.ge.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 "
        "%3, 0;"
        " @p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];}"
        : "=&r"(to.word[0]), "=&r"(to.word[1]), "=&r"(to.word[2]), "=&r"(to.word[3])
        : "l"(from), "r"(index));
  }
#endif
  return to;
}

/// base + count · bytes, by one instruction.
template <class T>
ALIGNMASK_DEVICE T* advance(T* base, int count, int bytes) {
#if defined(ALIGNMASK_SIMT)
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(base) +
                              static_cast<std::uintptr_t>(Int64{count} * bytes));
#else
  T* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(count), "r"(bytes), "l"(base));
  return result;
#endif
}

/// Writes to global memory; `to` is aligned to the size written.
template <int kWords>
ALIGNMASK_DEVICE void store_words(const Words<kWords>& from, void* to) {
#if defined(ALIGNMASK_SIMT)
  simt::check_alignment(to, sizeof(from));
  __builtin_memcpy(to, &from, sizeof(from));
#else
  if constexpr (kWords == 1) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(from.word[0]) : "memory");
  } else if constexpr (kWords == 2) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(from.word[0]), "r"(from.word[1])
                 : "memory");
  } else {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(from.word[0]),
                 "r"(from.word[1]), "r"(from.word[2]), "r"(from.word[3])
                 : "memory");
  }
#endif
}

/// Makes the compiler forget what it knows about the words.
template <int kWords>
ALIGNMASK_DEVICE void hide_origin(Words<kWords>& words) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) asm volatile("" : "+r"(words.word[i]));
}

/// The same number, about which the compiler knows nothing: what is computed from it in a loop
/// stays in the loop, where registers are scarcer than instructions.
ALIGNMASK_DEVICE int recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

ALIGNMASK_DEVICE float bits_to_float(UInt32 bits) {
#if defined(ALIGNMASK_SIMT)
  return baseline::bit_cast<float>(bits);
#else
  return __uint_as_float(bits);
#endif
}

ALIGNMASK_DEVICE UInt32 float_to_bits(float x) {
#if defined(ALIGNMASK_SIMT)
  return baseline::bit_cast<UInt32>(x);
#else
  return __float_as_uint(x);
#endif
}

ALIGNMASK_DEVICE UInt64 double_to_bits(double x) {
#if defined(ALIGNMASK_SIMT)
  return baseline::bit_cast<UInt64>(x);
#else
  return static_cast<UInt64>(__double_as_longlong(x));
#endif
}

ALIGNMASK_DEVICE float to_float(BFloat16 x) {
  return bits_to_float(static_cast<UInt32>(x.bits) << 16);
}

ALIGNMASK_DEVICE float to_float(Half x) {
#if defined(ALIGNMASK_SIMT)
  return baseline::to_float(x);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#endif
}

/// Two numbers that share a word, the first in its lower half.
ALIGNMASK_DEVICE void unpack(UInt32 word, Half, float& first, float& second) {
#if defined(ALIGNMASK_SIMT)
  first = baseline::to_float(Half{static_cast<unsigned short>(word)});
  second = baseline::to_float(Half{static_cast<unsigned short>(word >> 16)});
#else
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(first), "=f"(second)
      : "r"(word));
#endif
}

ALIGNMASK_DEVICE void unpack(UInt32 word, BFloat16, float& first, float& second) {
  first = bits_to_float(word << 16);
  second = bits_to_float(word & 0xffff0000u);
}

ALIGNMASK_DEVICE Half to_half(float x) {
#if defined(ALIGNMASK_SIMT)
  return baseline::to_half(x);
#else
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#endif
}

ALIGNMASK_DEVICE BFloat16 to_bfloat16(float x) {
  BFloat16 result;
#if !defined(ALIGNMASK_SIMT) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#else
  const UInt32 bits = float_to_bits(x);
  const UInt32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  result.bits = static_cast<unsigned short>(x != x ? 0x7fffu : rounded);
#endif
  return result;
}

/// *to += x, in global memory; the result is not returned. The order among threads is not defined.
ALIGNMASK_DEVICE void atomic_add(float* to, float x) {
#if defined(ALIGNMASK_SIMT)
  atomicAdd(to, x);
#else
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(x) : "memory");
#endif
}

ALIGNMASK_DEVICE void atomic_add(double* to, double x) {
#if defined(ALIGNMASK_SIMT)
  atomicAdd(to, x);
#else
  asm volatile("red.global.add.f64 [%0], %1;" ::"l"(to), "d"(x) : "memory");
#endif
}

/// Does atomic_add() add neighbouring floats at once? (On the host, the tests choose.)
ALIGNMASK_DEVICE bool has_vector_atomics() {
#if defined(ALIGNMASK_SIMT)
  return simt::has_vector_atomics();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}

/// As above, for 2 or 4 neighbouring floats, aligned to their size together.
template <int kCount>
ALIGNMASK_DEVICE void atomic_add(float* to, const float (&x)[kCount]) {
  static_assert(kCount == 2 || kCount == 4, "no such instruction");
#if defined(ALIGNMASK_SIMT)
  simt::check_alignment(to, sizeof(x));
#elif __CUDA_ARCH__ >= 900
  if constexpr (kCount == 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]),
                 "f"(x[2]), "f"(x[3])
                 : "memory");
  } else {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x[0]), "f"(x[1])
                 : "memory");
  }
#endif
#if defined(ALIGNMASK_SIMT) || __CUDA_ARCH__ < 900
  for (int i = 0; i < kCount; ++i) atomic_add(to + i, x[i]);
#endif
}

}  // namespace alignmask
