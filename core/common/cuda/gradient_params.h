// Parameters of the kernels of gradient.cuh.
#pragma once

#include "fast_divide.h"

namespace alignmask {

constexpr int kElementwiseThreads = 256;  // of a block
constexpr int kFillBytesPerBlock = kElementwiseThreads * 64;

struct FillParams {
  void* to;
  long long bytes;  // a multiple of 4
};

constexpr int kGradientsPerThread = 8;  // where they lie together

struct WriteGradientParams {
  const void* sums;  // [sizes], contiguous, in the arithmetic type
  void* gradient;    // [sizes], any strides
  long long count;   // elements
  long long sizes[4], strides[4];
};

}  // namespace alignmask
