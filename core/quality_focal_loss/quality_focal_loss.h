// Quality focal loss and IoU-weighted negatives (Eq. 2 and 3), with its gradient, in one pass.
//
//   label[r] >= 0:   loss[r] = Σ_c |t_c - s_c|^γ · BCE(s_c, t_c)
//                    t = iou[r] in the label's column, 0 elsewhere
//   label[r] == -1:  loss[r] = w · Σ_c s_c^γ · BCE(s_c, 0)
//                    w = 1 if iou[r] < θ, else (1 - iou[r]^γ) / (1 - θ^γ)
//
// s = sigmoid(logits). Stable for |logit| up to 1e4.
//
// R rows (one query each), C classes.
#pragma once

#include "common/tensor_view.h"

namespace alignmask {

struct QualityFocalLossArgs {
  static const char* op() { return "quality_focal_loss"; }

  TensorView logits;  ///< [R, C]  float16, bfloat16, float32 or float64; any strides, as all below
  TensorView label;   ///< [R]     int64 or int32, in [-1, C)
  TensorView iou;     ///< [R]     any of the dtypes of logits

  double gamma = 2;    ///< at least 1
  double theta = 0.5;  ///< in [0, 1)

  TensorView loss;         ///< output: [R], dtype of logits
  TensorView grad_logits;  ///< output: [R, C], d loss[r] / d logits[r, c] in float32, or float64
                           ///< beside float64; absent if not needed
  int threads = 1;         ///< at most this many CPU threads; the result does not depend on it
  void* stream = nullptr;  ///< CUDA: the stream to work on
};

/// Throws TypeError or ValueError, before anything is written, unless the arguments fit together.
/// Outputs must not overlap inputs. On CUDA, label is not looked at: an entry out of range counts
/// as -1.
void quality_focal_loss_forward(const QualityFocalLossArgs& args);

}  // namespace alignmask
