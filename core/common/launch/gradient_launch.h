// Launches that several ops make around gradients which are added up in a memory of their own.
#pragma once

#include <string>

#include "common/cuda/gradient_params.h"
#include "launch.h"

namespace alignmask {

/// Zeroes `bytes` (a multiple of 4) of memory aligned to 16 bytes.
inline Launch fill_zero_launch(void* to, std::int64_t bytes) {
  return make_launch("fill_zero<float>", blocks_for(bytes, kFillBytesPerBlock), kElementwiseThreads,
                     FillParams{to, bytes});
}

/// gradient = sums. `order`: of the gradient's dimensions, in which the sums are contiguous.
inline Launch write_gradient_launch(const TensorView& gradient, const void* sums,
                                    const int (&order)[4]) {
  WriteGradientParams params = {sums, gradient.data, gradient.elements(), {}, {}};
  TensorView turned = gradient;
  for (int i = 0; i < 4; ++i) {
    params.sizes[i] = turned.shape[i] = gradient.shape[order[i]];
    params.strides[i] = turned.strides[i] = gradient.strides[order[i]];
  }
  const bool contiguous = !is_arithmetic(gradient.dtype) && is_contiguous(turned) &&
                          is_aligned(gradient, 0, kGradientsPerThread);
  const std::string name = contiguous ? "write_contiguous_gradient<" : "write_gradient<";
  return make_launch(name + kernel_type(gradient.dtype) + ">",
                     blocks_for(params.count, std::int64_t{kElementwiseThreads} *
                                                  (contiguous ? kGradientsPerThread : 1)),
                     kElementwiseThreads, params);
}

}  // namespace alignmask
