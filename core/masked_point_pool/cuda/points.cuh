// What the kernels of masked_point_pool share: points, masks at points, features around points,
// instances of an image.
#pragma once

#include "common/cuda/bilinear_taps.cuh"
#include "common/cuda/vector.cuh"
#include "common/cuda/warp.cuh"
#include "masked_point_pool/formula.h"
#include "params.h"

namespace alignmask {

using namespace ALIGNMASK_ISA;

constexpr int kPoolWarps = kPoolThreads / kWarp;

/// Image of an instance, or -1.
ALIGNMASK_DEVICE int image_of(const MaskedPointPoolParams& params, int instance) {
  const Int64 image = load_int(params.owner, instance * params.owner_stride, params.owner_wide);
  return image >= 0 && image < params.images ? static_cast<int>(image) : -1;
}

/// (x, y) of point k of a set, normalised.
template <class T>
ALIGNMASK_DEVICE void read_point(const MaskedPointPoolParams& params, int image, int set, int k,
                                 Arithmetic<T>& x, Arithmetic<T>& y) {
  const Int64 at = image * params.points_strides[0] + set * params.points_strides[1] +
                   k * params.points_strides[2];
  x = load_either<T>(params.points, at, params.points_wide);
  y = load_either<T>(params.points, at + params.points_strides[3], params.points_wide);
}

/// Sample of an instance's mask at a point.
template <class F>
ALIGNMASK_DEVICE F sample_mask_of(const MaskedPointPoolParams& params, int instance,
                                  const PointOnMap<F, int>& point) {
  const auto* const mask =
      static_cast<const unsigned char*>(params.masks) + instance * params.masks_strides[0];
  return sample_mask(point, params.mask_width, params.mask_height, [&](int x, int y) {
    return mask[y * params.masks_strides[1] + x * params.masks_strides[2]] != 0;
  });
}

template <class F>
ALIGNMASK_DEVICE PointOnMap<F, int> point_on_masks(const MaskedPointPoolParams& params, F x, F y) {
  return PointOnMap<F, int>::of(x, y, params.mask_width, params.mask_height);
}

/// The four pixels of the features around a point.
template <class F>
ALIGNMASK_DEVICE BilinearTaps<F> feature_taps(const MaskedPointPoolParams& params, F x, F y) {
  const auto point = PointOnMap<F, int>::of(x, y, params.width, params.height);
  return bilinear_taps(
      corner_indices(point.inside, point.x, point.y, params.width, params.height, 0),
      corner_weights(point.x_part, point.y_part));
}

/// `channel` of pixel 0 -> of `pixel` (somewhere, if that is -1). kDense: the stride of a row is W
/// times that of a pixel, which has 32 bits.
template <bool kDense, class T>
ALIGNMASK_DEVICE T* pixel_at(const MaskedPointPoolParams& params, T* channel, int pixel) {
  if constexpr (kDense) return advance(channel, pixel, params.pixel_bytes);
  pixel = larger(pixel, 0);
  const int row = params.by_width.quotient(pixel);
  return channel + row * params.features_strides[2] +
         (pixel - row * params.width) * params.features_strides[3];
}

/// Factor by which the gradient of an instance's pooled features is multiplied, besides the hit
/// itself: 1 / divisor. It is 0 if no point of the set hit the mask: the gradient is then zero.
template <class F>
ALIGNMASK_DEVICE F gradient_scale(const MaskedPointPoolParams& params, int instance, int set) {
  const F weight = static_cast<const F*>(
      params.weight)[instance * params.weight_strides[0] + set * params.weight_strides[1]];
  if (weight == 0) return 0;
  return 1 / (params.divide_by_points ? static_cast<F>(params.points_per_set) : weight);
}

/// For a whole warp: finds up to kMost instances of an image from instance `first` on. Returns
/// where to go on, or -1 if there are no more. `found`: shared memory; lanes may read it after the
/// next barrier.
template <int kMost>
ALIGNMASK_DEVICE int find_instances(const MaskedPointPoolParams& params, int image, int first,
                                    int* found, int* count) {
  const int lane = threadIdx.x % kWarp;
  int number = 0;
  for (; first < params.instances; first += kWarp) {
    const int instance = first + lane;
    const bool mine = instance < params.instances && image_of(params, instance) == image;
    const UInt32 ballot = __ballot_sync(kFullWarp, mine);
    const int rank = number + __popc(ballot & ((1u << lane) - 1));
    if (mine && rank < kMost) found[rank] = instance;
    const UInt32 over = __ballot_sync(kFullWarp, mine && rank == kMost);
    if (over) {
      if (lane == 0) *count = kMost;
      return first + __ffs(static_cast<int>(over)) - 1;
    }
    number += __popc(ballot);
  }
  if (lane == 0) *count = number;
  return -1;
}

}  // namespace alignmask
