// The CUDA kernels of mask_iou, and every instantiation of them: launches choose among these,
// nothing else gets compiled.
#pragma once

#include "cells.cuh"
#include "common/cuda/gradient.cuh"
#include "pixels.cuh"

// mask_iou_count: <element type, upsamples>, mask_iou_count_cells: <element type>
#define ALIGNMASK_KERNELS(X)         \
  X(fill_zero<float>)                \
  X(mask_iou_pack<true>)             \
  X(mask_iou_pack<false>)            \
  X(mask_iou_count<float, false>)    \
  X(mask_iou_count<float, true>)     \
  X(mask_iou_count<double, false>)   \
  X(mask_iou_count<double, true>)    \
  X(mask_iou_count<Half, false>)     \
  X(mask_iou_count<Half, true>)      \
  X(mask_iou_count<BFloat16, false>) \
  X(mask_iou_count<BFloat16, true>)  \
  X(mask_iou_pack_cells<true>)       \
  X(mask_iou_pack_cells<false>)      \
  X(mask_iou_count_cells<float>)     \
  X(mask_iou_count_cells<double>)    \
  X(mask_iou_count_cells<Half>)      \
  X(mask_iou_count_cells<BFloat16>)  \
  X(mask_iou_divide<float>)          \
  X(mask_iou_divide<double>)
