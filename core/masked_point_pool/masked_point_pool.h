// Point sampling and masked average pooling (Eq. 1 up to GAP).
//
//   weight[g, t] = Σ_k hit
//   pooled[g, t, c] = Σ_k hit · sample(features of image owner[g], channel c; point k) / divisor
//   hit = sample(mask g; point k),  point k = points[owner[g], t, k]
//
// sample: bilinear at (x, y) normalised to [0, 1] over the map, align_corners=False, zero outside;
// a mask's non-zero bytes count as 1. The divisor is weight[g, t], or K if divide_by_points is set;
// where weight is 0, pooled is 0. If a point is NaN, all results of its point set are NaN. An
// infinite point lies outside the map.
//
// B images, C channels, H x W features, G instances of h x w, T sets of K points.
#pragma once

#include "common/tensor_view.h"

namespace alignmask {

struct MaskedPointPoolArgs {
  static const char* op() { return "masked_point_pool"; }

  TensorView features;  ///< forward: [B, C, H, W], float16, bfloat16, float32 or float64; any
                        ///< strides, as all below
  TensorView masks;     ///< [G, h, w]     bool or uint8
  TensorView owner;     ///< [G]           int64 or int32, in [0, B)
  TensorView points;    ///< [B, T, K, 2]  dtype of features, or float32 beside half precision

  bool divide_by_points = false;  ///< divisor: K, not weight

  TensorView pooled;  ///< forward, output: [G, T, C], dtype of features
  /// [G, T]; written by forward and read by backward. float64 if features are float64, else
  /// float32.
  TensorView weight;

  TensorView grad_pooled;    ///< backward, input: [G, T, C], dtype of features
  TensorView grad_features;  ///< backward, output: [B, C, H, W], dtype of features; all its
                             ///< elements are written

  int threads = 1;         ///< at most this many CPU threads; the result does not depend on it
  void* stream = nullptr;  ///< CUDA: the stream to work on

  bool deterministic = false;  ///< CUDA: backward adds in a fixed order (the CPU always does)
  /// CUDA, backward: uint8, as many as masked_point_pool_backward_workspace() says, aligned to 16
  /// bytes, in use until the stream has done the work
  TensorView workspace;
};

/// Throw TypeError or ValueError, before anything is written, unless the arguments fit together.
/// Outputs must not overlap inputs. On CUDA, owner is not looked at: an entry out of range is
/// treated as an instance without an image.
void masked_point_pool_forward(const MaskedPointPoolArgs& args);
void masked_point_pool_backward(const MaskedPointPoolArgs& args);

/// Bytes of workspace that masked_point_pool_backward() needs for these arguments. Throws as that
/// does.
std::int64_t masked_point_pool_backward_workspace(const MaskedPointPoolArgs& args);

}  // namespace alignmask
