// The CUDA dialect of the kernels in terms of the runtime. The compiler's command line includes it
// before all else.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime.h"

#define ALIGNMASK_SIMT 1

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __syncthreads() ((void)::simt::barrier(false))
#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())

#define ALIGNMASK_SHARED(T, name, count)                                             \
  T* const name = static_cast<T*>([] {                                               \
    static const char tag = 0;                                                       \
    return ::simt::shared_memory(&tag, sizeof(T) * static_cast<std::size_t>(count)); \
  }())

inline int __syncthreads_count(int vote) { return simt::barrier(vote != 0); }
inline int __syncthreads_or(int vote) { return simt::barrier(vote != 0) != 0; }

inline void __syncwarp(std::uint32_t mask = 0xffffffffu) {
  simt::Meeting("__syncwarp", mask, 0, true);
}

inline std::uint32_t __ballot_sync(std::uint32_t mask, int vote) {
  const simt::Meeting meeting("__ballot_sync", mask, vote != 0);
  std::uint32_t votes = 0;
  for (unsigned lane = 0; lane < simt::kWarp; ++lane)
    if (mask >> lane & 1) votes |= static_cast<std::uint32_t>(meeting.value_of(lane)) << lane;
  return votes;
}
inline int __any_sync(std::uint32_t mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(std::uint32_t mask, int vote) { return __ballot_sync(mask, vote) == mask; }

namespace simt {

/// What lane `source` of the caller's group of `width` lanes holds; one's own value if there is no
/// such lane.
template <class T>
T shuffle(const char* operation, std::uint32_t mask, T value, int source, int width) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t), "shuffles move up to eight bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  const Meeting meeting(operation, mask, bits);
  const int lane = static_cast<int>(thread_index().x % kWarp), first = lane & ~(width - 1);
  bits = meeting.value_of(
      static_cast<unsigned>(source < 0 || source >= width ? lane : first + source));
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline int lane_in(int width) { return static_cast<int>(thread_index().x) & (width - 1); }

/// *p = f(*p) in one step.
template <class T, class F>
T replace(T* p, F f) {
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do after = f(before);
  while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

template <class T>
struct Same {
  using type = T;
};

}  // namespace simt

template <class T>
T __shfl_sync(std::uint32_t mask, T value, int source, int width = 32) {
  return simt::shuffle("__shfl_sync", mask, value, source & (width - 1), width);
}
template <class T>
T __shfl_xor_sync(std::uint32_t mask, T value, int bits, int width = 32) {
  return simt::shuffle("__shfl_xor_sync", mask, value, simt::lane_in(width) ^ bits, width);
}
template <class T>
T __shfl_down_sync(std::uint32_t mask, T value, unsigned steps, int width = 32) {
  return simt::shuffle("__shfl_down_sync", mask, value,
                       simt::lane_in(width) + static_cast<int>(steps), width);
}
template <class T>
T __shfl_up_sync(std::uint32_t mask, T value, unsigned steps, int width = 32) {
  return simt::shuffle("__shfl_up_sync", mask, value,
                       simt::lane_in(width) - static_cast<int>(steps), width);
}

template <class T>
T atomicAdd(T* p, typename simt::Same<T>::type x) {
  return simt::replace(p, [x](T before) { return before + x; });
}
template <class T>
T atomicOr(T* p, typename simt::Same<T>::type x) {
  return simt::replace(p, [x](T before) { return before | x; });
}

inline int atomicCAS(int* p, int expected, int x) {
  __atomic_compare_exchange_n(p, &expected, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
