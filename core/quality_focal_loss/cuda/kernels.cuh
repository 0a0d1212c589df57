// The CUDA kernels of quality_focal_loss, and every instantiation of them: launches choose among
// these, nothing else gets compiled.
#pragma once

#include "forward.cuh"

// <element type, logits per lane, gamma is 2>
#define ALIGNMASK_KERNELS(X)                        \
  X(quality_focal_loss_forward<float, 4, true>)     \
  X(quality_focal_loss_forward<float, 4, false>)    \
  X(quality_focal_loss_forward<Half, 8, true>)      \
  X(quality_focal_loss_forward<Half, 8, false>)     \
  X(quality_focal_loss_forward<BFloat16, 8, true>)  \
  X(quality_focal_loss_forward<BFloat16, 8, false>) \
  X(quality_focal_loss_forward<float, 1, true>)     \
  X(quality_focal_loss_forward<float, 1, false>)    \
  X(quality_focal_loss_forward<double, 1, true>)    \
  X(quality_focal_loss_forward<double, 1, false>)   \
  X(quality_focal_loss_forward<Half, 1, true>)      \
  X(quality_focal_loss_forward<Half, 1, false>)     \
  X(quality_focal_loss_forward<BFloat16, 1, true>)  \
  X(quality_focal_loss_forward<BFloat16, 1, false>)
