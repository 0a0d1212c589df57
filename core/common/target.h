// What the compiler and its target can do. Free of host includes, so that CUDA kernels may include
// it.
#pragma once

#if defined(__CUDACC__)
#define ALIGNMASK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ALIGNMASK_HOST_DEVICE inline __attribute__((always_inline))
#endif

// CPU kernels are compiled once per instruction set, each time inside the namespace named here.
// Everything such a file includes lives in that namespace or is always inlined: the linker must
// never mix the copies of two instruction sets.
#if !defined(ALIGNMASK_ISA)
#define ALIGNMASK_ISA baseline
#endif

// Bytes in a vector register.
#if defined(__AVX512F__)
#define ALIGNMASK_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ALIGNMASK_VECTOR_BYTES 32
#else
#define ALIGNMASK_VECTOR_BYTES 16
#endif
