// The dialect that device code is written in: CUDA C++ as nvcc and NVRTC understand it, and as the
// host compiler does together with the SIMT runtime of the tests (which then is included first, by
// the command line).
//
// Device headers include nothing but each other: NVRTC finds no system headers on most machines.
#pragma once

#include "common/element.h"
#include "common/target.h"

#if defined(ALIGNMASK_SIMT)
#define ALIGNMASK_DEVICE inline
#else
#define ALIGNMASK_DEVICE __device__ __forceinline__

/// `name`: memory of the block, for `count` values of T (a constant).
#define ALIGNMASK_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#endif

// Threads that a multiprocessor can hold.
#if !defined(__CUDA_ARCH__)
#define ALIGNMASK_RESIDENT_THREADS 2048
#elif __CUDA_ARCH__ == 750
#define ALIGNMASK_RESIDENT_THREADS 1024
#elif (__CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ == 1100 || __CUDA_ARCH__ >= 1200
#define ALIGNMASK_RESIDENT_THREADS 1536
#else
#define ALIGNMASK_RESIDENT_THREADS 2048
#endif

/// Starts the definition of a kernel for blocks of `threads`, of which `blocks` should fit on a
/// multiprocessor at once (fewer, where it cannot hold that many threads).
#define ALIGNMASK_KERNEL(threads, blocks)                                                       \
  __global__ void __launch_bounds__(threads, (threads) * (blocks) <= ALIGNMASK_RESIDENT_THREADS \
                                                 ? (blocks)                                     \
                                                 : ALIGNMASK_RESIDENT_THREADS / (threads))

/// Before the parameters of a kernel, a struct: it is read where the launch put it, no thread makes
/// a copy.
#if defined(ALIGNMASK_SIMT)
#define ALIGNMASK_PARAMS const
#else
#define ALIGNMASK_PARAMS const __grid_constant__
#endif

namespace alignmask {

using Int64 = long long;
using UInt64 = unsigned long long;
using UInt32 = unsigned int;

constexpr UInt32 kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

template <class T>
ALIGNMASK_DEVICE T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
ALIGNMASK_DEVICE T larger(T a, T b) {
  return a < b ? b : a;
}

}  // namespace alignmask
