// IoU of every target mask with all predictions of its image (the IoU of Eq. 2 and 3).
//
//   iou[g, q] = |P ∩ T| / |P ∪ T|
//   P = {pixels with predictions[owner[g], q] > threshold},  T = {non-zero pixels of targets[g]}
//
// NaN is background; two empty masks have IoU 0. Targets may be larger by an integer factor, the
// same for both sides: then the predictions are upsampled first, bilinearly with
// align_corners=False. Counts are exact.
//
// B images, Q predictions per image of h x w, G targets of H x W.
#pragma once

#include "common/tensor_view.h"

namespace alignmask {

struct MaskIouArgs {
  static const char* op() { return "mask_iou"; }

  TensorView predictions;  ///< [B, Q, h, w]  float16, bfloat16, float32 or float64; any strides, as
                           ///< all below
  TensorView targets;      ///< [G, H, W]     bool or uint8
  TensorView owner;        ///< [G]           int64 or int32, in [0, B)

  double threshold = 0;

  TensorView iou;  ///< output: [G, Q], float32, or float64 beside float64

  int threads = 1;         ///< at most this many CPU threads; the result does not depend on it
  void* stream = nullptr;  ///< CUDA: the stream to work on
  TensorView workspace;  ///< CUDA: uint8, as many as mask_iou_forward_workspace() says, aligned to
                         ///< 16 bytes, in use until the stream has done the work
};

/// Throws TypeError or ValueError, before anything is written, unless the arguments fit together.
/// The output must not overlap inputs. On CUDA, owner is not looked at: an entry out of range is
/// treated as a target without predictions.
void mask_iou_forward(const MaskIouArgs& args);

/// Bytes of workspace that mask_iou_forward() needs for these arguments. Throws as that does.
std::int64_t mask_iou_forward_workspace(const MaskIouArgs& args);

}  // namespace alignmask
