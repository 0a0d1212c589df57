// The CUDA kernels of ms_deform_attn, and every instantiation of them: launches choose among these,
// nothing else gets compiled.
#pragma once

#include "backward.cuh"
#include "common/cuda/gradient.cuh"
#include "forward.cuh"
#include "ordered.cuh"
#include "value_gradient.cuh"

// <element type, channels per lane, lanes per query and head>: 16 bytes per lane, for heads of 16,
// 32, 64 (and more) channels; one channel per lane for everything else. The backward kernel needs
// four lanes. ms_deform_attn_value_gradient: <element type, do the points of a query and head lie
// together?>
#define ALIGNMASK_KERNELS(X)                         \
  X(ms_deform_attn_forward<float, 4, 4>)             \
  X(ms_deform_attn_forward<float, 4, 8>)             \
  X(ms_deform_attn_forward<float, 4, 16>)            \
  X(ms_deform_attn_forward<Half, 8, 2>)              \
  X(ms_deform_attn_forward<Half, 8, 4>)              \
  X(ms_deform_attn_forward<Half, 8, 8>)              \
  X(ms_deform_attn_forward<BFloat16, 8, 2>)          \
  X(ms_deform_attn_forward<BFloat16, 8, 4>)          \
  X(ms_deform_attn_forward<BFloat16, 8, 8>)          \
  X(ms_deform_attn_forward<float, 1, 32>)            \
  X(ms_deform_attn_forward<double, 1, 32>)           \
  X(ms_deform_attn_forward<Half, 1, 32>)             \
  X(ms_deform_attn_forward<BFloat16, 1, 32>)         \
  X(ms_deform_attn_backward<float, 4, 4>)            \
  X(ms_deform_attn_backward<float, 4, 8>)            \
  X(ms_deform_attn_backward<float, 4, 16>)           \
  X(ms_deform_attn_backward<Half, 4, 4>)             \
  X(ms_deform_attn_backward<Half, 8, 4>)             \
  X(ms_deform_attn_backward<Half, 4, 16>)            \
  X(ms_deform_attn_backward<BFloat16, 4, 4>)         \
  X(ms_deform_attn_backward<BFloat16, 8, 4>)         \
  X(ms_deform_attn_backward<BFloat16, 4, 16>)        \
  X(ms_deform_attn_backward<float, 1, 32>)           \
  X(ms_deform_attn_backward<double, 1, 32>)          \
  X(ms_deform_attn_backward<Half, 1, 32>)            \
  X(ms_deform_attn_backward<BFloat16, 1, 32>)        \
  X(ms_deform_attn_value_gradient<float, false>)     \
  X(ms_deform_attn_value_gradient<float, true>)      \
  X(ms_deform_attn_value_gradient<double, false>)    \
  X(ms_deform_attn_value_gradient<Half, false>)      \
  X(ms_deform_attn_value_gradient<Half, true>)       \
  X(ms_deform_attn_value_gradient<BFloat16, false>)  \
  X(ms_deform_attn_value_gradient<BFloat16, true>)   \
  X(ms_deform_attn_ordered_value_gradient<float>)    \
  X(ms_deform_attn_ordered_value_gradient<double>)   \
  X(ms_deform_attn_ordered_value_gradient<Half>)     \
  X(ms_deform_attn_ordered_value_gradient<BFloat16>) \
  X(ms_deform_attn_reference_gradient<float>)        \
  X(ms_deform_attn_reference_gradient<double>)       \
  X(ms_deform_attn_reference_gradient<Half>)         \
  X(ms_deform_attn_reference_gradient<BFloat16>)     \
  X(fill_zero<float>)                                \
  X(write_gradient<float>)                           \
  X(write_gradient<double>)                          \
  X(write_gradient<Half>)                            \
  X(write_gradient<BFloat16>)                        \
  X(write_contiguous_gradient<Half>)                 \
  X(write_contiguous_gradient<BFloat16>)
