// The CUDA kernels of mask_points, and every instantiation of them: launches choose among these,
// nothing else gets compiled.
#pragma once

#include "backward.cuh"
#include "common/cuda/gradient.cuh"
#include "forward.cuh"

#define ALIGNMASK_KERNELS(X)                \
  X(mask_points_forward<float>)             \
  X(mask_points_forward<double>)            \
  X(mask_points_forward<Half>)              \
  X(mask_points_forward<BFloat16>)          \
  X(mask_points_backward<float>)            \
  X(mask_points_backward<double>)           \
  X(mask_points_backward<Half>)             \
  X(mask_points_backward<BFloat16>)         \
  X(mask_points_ordered_backward<float>)    \
  X(mask_points_ordered_backward<double>)   \
  X(mask_points_ordered_backward<Half>)     \
  X(mask_points_ordered_backward<BFloat16>) \
  X(fill_zero<float>)                       \
  X(write_gradient<float>)                  \
  X(write_gradient<double>)                 \
  X(write_gradient<Half>)                   \
  X(write_gradient<BFloat16>)               \
  X(write_contiguous_gradient<Half>)        \
  X(write_contiguous_gradient<BFloat16>)
