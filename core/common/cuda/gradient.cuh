// Gradients to which many threads add: they are added up in arithmetic precision in contiguous
// memory that starts as zero, and written in the tensor's own type and layout at the end.
#pragma once

#include "gradient_params.h"
#include "vector.cuh"

namespace alignmask {

/// Writes zeros. One thread writes 64 bytes, neighbours next to each other.
template <class T>
ALIGNMASK_KERNEL(kElementwiseThreads, 8)
fill_zero(ALIGNMASK_PARAMS FillParams params) {
  const Int64 first = static_cast<Int64>(blockIdx.x) * kFillBytesPerBlock;
  char* const to = static_cast<char*>(params.to) + first;
  const Int64 bytes = params.bytes - first;
  constexpr int kStep = kElementwiseThreads * 16;
  for (int i = 0; i < kFillBytesPerBlock / kStep; ++i) {
    const int at = i * kStep + static_cast<int>(threadIdx.x) * 16;
    if (at + 16 <= bytes) {
      store_words(Words<4>{{0, 0, 0, 0}}, to + at);
    } else {
      for (int rest = at; rest < at + 16 && rest < bytes; rest += 4)
        store_words(Words<1>{{0}}, to + rest);
    }
  }
}

/// gradient = sums. One thread per element of the sums, so they are read together; the gradient
/// usually lies the same way.
template <class T>
ALIGNMASK_KERNEL(kElementwiseThreads, 8)
write_gradient(ALIGNMASK_PARAMS WriteGradientParams params) {
  const Int64 index = static_cast<Int64>(blockIdx.x) * kElementwiseThreads + threadIdx.x;
  if (index >= params.count) return;
  Int64 rest = index, at = 0;
  for (int i = 3; i >= 0; --i) {
    const Int64 size = params.sizes[i];
    // 64-bit division takes some seventy instructions.
    const Int64 quotient =
        rest <= 0x7fffffff && size <= 0x7fffffff
            ? static_cast<Int64>(static_cast<UInt32>(rest) / static_cast<UInt32>(size))
            : rest / size;
    at += (rest - quotient * size) * params.strides[i];
    rest = quotient;
  }
  from_arithmetic(static_cast<const Arithmetic<T>*>(params.sums)[index],
                  static_cast<T*>(params.gradient)[at]);
}

/// As above in half precision, where the gradient is as contiguous as the sums are, and aligned to
/// 16 bytes: a thread writes 16 bytes.
template <class T>
ALIGNMASK_KERNEL(kElementwiseThreads, 8)
write_contiguous_gradient(ALIGNMASK_PARAMS WriteGradientParams params) {
  static_assert(sizeof(T) == 2, "other sums are the gradient");
  const Int64 first =
      (static_cast<Int64>(blockIdx.x) * kElementwiseThreads + threadIdx.x) * kGradientsPerThread;
  const float* const from = static_cast<const float*>(params.sums) + first;
  T* const to = static_cast<T*>(params.gradient) + first;
  if (first + kGradientsPerThread <= params.count) {
    const Packed<float, 4> low = load<float, 4>(from), high = load<float, 4>(from + 4);
    const float sums[kGradientsPerThread] = {low.element[0],  low.element[1],  low.element[2],
                                             low.element[3],  high.element[0], high.element[1],
                                             high.element[2], high.element[3]};
    store<T, kGradientsPerThread>(sums, to);
  } else {
    for (int i = 0; first + i < params.count; ++i) from_arithmetic(from[i], to[i]);
  }
}

}  // namespace alignmask
