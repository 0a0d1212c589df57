// The CUDA kernels of masked_point_pool, and every instantiation of them: launches choose among
// these, nothing else gets compiled.
#pragma once

#include "backward.cuh"
#include "common/cuda/gradient.cuh"
#include "forward.cuh"
#include "ordered.cuh"

// masked_point_pool_forward: <element type, channels per lane>
#define ALIGNMASK_KERNELS(X)                      \
  X(masked_point_pool_forward<float, 4>)          \
  X(masked_point_pool_forward<Half, 8>)           \
  X(masked_point_pool_forward<BFloat16, 8>)       \
  X(masked_point_pool_forward<float, 1>)          \
  X(masked_point_pool_forward<double, 1>)         \
  X(masked_point_pool_forward<Half, 1>)           \
  X(masked_point_pool_forward<BFloat16, 1>)       \
  X(masked_point_pool_backward<float>)            \
  X(masked_point_pool_backward<double>)           \
  X(masked_point_pool_backward<Half>)             \
  X(masked_point_pool_backward<BFloat16>)         \
  X(masked_point_pool_ordered_backward<float>)    \
  X(masked_point_pool_ordered_backward<double>)   \
  X(masked_point_pool_ordered_backward<Half>)     \
  X(masked_point_pool_ordered_backward<BFloat16>) \
  X(fill_zero<float>)                             \
  X(write_gradient<float>)                        \
  X(write_gradient<double>)                       \
  X(write_gradient<Half>)                         \
  X(write_gradient<BFloat16>)                     \
  X(write_contiguous_gradient<Half>)              \
  X(write_contiguous_gradient<BFloat16>)
