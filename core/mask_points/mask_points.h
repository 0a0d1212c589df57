// Points for mask losses as PointRend draws them in training, with the logits and the targets
// there.
//
//   candidate[r, i] = (x, y), uniform in [0, 1)²
//   points[r, :kept] = those `kept` of the first M candidates at which |sample(logits r)| is
//                      smallest; among equals the first; in the order of i
//   points[r, kept:] = candidate[r, M:]
//   sampled[r, k] = sample(logits r; points[r, k])
//   targets[r, k] = sample(mask index[r]; points[r, k])
//
// sample: bilinear, align_corners=False, zero outside; a mask's non-zero bytes count as 1; NaN is
// larger than any number. Candidate i of row r is made of two words w of Philox4x32-10 (Salmon et
// al. 2011) with the seed as key and the counter (i / 2, r, 0, 0): words 0 and 1 for an even i, 2
// and 3 for an odd one; a coordinate is (w >> 8) / 2^24. Every kernel rounds alike, so all devices
// and instruction sets have the same points.
//
// R rows of H x W logits, G masks of h x w, K points, M candidates.
#pragma once

#include "common/tensor_view.h"

namespace alignmask {

struct MaskPointsArgs {
  static const char* op() { return "mask_points"; }

  TensorView logits;  ///< forward: [R, H, W]  float16, bfloat16, float32 or float64; any strides,
                      ///< as all below
  TensorView masks;   ///< forward: [G, h, w]  bool or uint8
  TensorView index;   ///< forward: [R]        int64 or int32, in [0, G)

  std::int64_t seed = 0;
  int candidates = 0;  ///< M
  int kept = 0;        ///< at most K and at most M

  /// [R, K, 2], float64 if logits are float64, else float32; written by forward and read by
  /// backward.
  TensorView points;
  TensorView sampled;  ///< forward, output: [R, K], dtype of logits
  TensorView targets;  ///< forward, output: [R, K], dtype of points

  TensorView grad_sampled;  ///< backward, input: [R, K], dtype of logits
  TensorView grad_logits;   ///< backward, output: [R, H, W], dtype of logits; all its elements are
                            ///< written

  int threads = 1;         ///< at most this many CPU threads; the result does not depend on it
  void* stream = nullptr;  ///< CUDA: the stream to work on

  bool deterministic = false;  ///< CUDA: backward adds in a fixed order (the CPU always does)
  /// CUDA, backward: uint8, as many as mask_points_backward_workspace() says, aligned to 16 bytes,
  /// in use until the stream has done the work
  TensorView workspace;
};

/// Throw TypeError or ValueError, before anything is written, unless the arguments fit together.
/// Outputs must not overlap inputs. On CUDA, index is not looked at: a row whose entry is out of
/// range has targets of 0. A point outside of [0, 1)², which forward never writes, has no gradient.
void mask_points_forward(const MaskPointsArgs& args);
void mask_points_backward(const MaskPointsArgs& args);

/// Bytes of workspace that mask_points_backward() needs for these arguments. Throws as that does.
std::int64_t mask_points_backward_workspace(const MaskPointsArgs& args);

}  // namespace alignmask
