// Parameters of the CUDA kernels of quality_focal_loss. Filled on the host, read on the device.
//
// R rows, C classes.
#pragma once

#include "common/element.h"

namespace alignmask {

constexpr int kLossThreads = 256;  // of a block
constexpr int kLossLanes = 8;      // that share a row

struct QualityFocalLossParams {
  // Tensors as in QualityFocalLossArgs; null: absent. Strides in elements.
  const void* logits;  // [R, C]
  const void* label;   // [R]
  const void* iou;     // [R]
  void* loss;          // [R]
  void* grad_logits;   // [R, C], in the arithmetic type
  long long logits_strides[2], grad_strides[2], label_stride, iou_stride, loss_stride;
  bool label_wide;  // of 64 bits, not 32?
  ElementType iou_type;

  long long rows, classes;
  double gamma, theta;
};

}  // namespace alignmask
