// Point sampling and masked average pooling in CUDA: the gradient of features with a fixed order of
// additions.
#pragma once

#include "points.cuh"

namespace alignmask {

/// Writes the gradient of features, without atomics: a block owns some pixels of an image and 32
/// channels, looks through all points of the image, and adds up those that reach its pixels, in
/// their order, instances in theirs.
template <class T>
ALIGNMASK_KERNEL(kPoolThreads, sizeof(T) == 8 ? 2 : 4)
masked_point_pool_ordered_backward(ALIGNMASK_PARAMS MaskedPointPoolParams params) {
  using F = Arithmetic<T>;
  constexpr int kTile = pool_ordered_tile(sizeof(F)),
                kOwn = kTile / kPoolWarps;                  // pixels of a block, of a warp
  ALIGNMASK_SHARED(F, sums, kTile * kPoolOrderedChannels);  // every lane uses its own
  ALIGNMASK_SHARED(int, queue, kPoolThreads);               // points that reach the tile
  ALIGNMASK_SHARED(int, hits, kPoolWarps);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const UInt32 of_tiles = blockIdx.x / params.ordered_tiles;
  const int image = static_cast<int>(of_tiles / params.channel_blocks);
  const int channel =
      static_cast<int>(of_tiles % params.channel_blocks) * kPoolOrderedChannels + lane;
  const int tile_first = static_cast<int>(blockIdx.x - of_tiles * params.ordered_tiles) * kTile;
  const int tile_end = smaller(tile_first + kTile, params.height * params.width);
  const int own_first = tile_first + warp * kOwn, own_end = smaller(own_first + kOwn, tile_end);
  F* const own = sums + warp * kOwn * kPoolOrderedChannels + lane;
  for (int i = 0; i < kOwn; ++i) own[i * kPoolOrderedChannels] = 0;

  /// Point `index` of the image's, counted through sets.
  const auto read = [&](int index, F& x, F& y) {
    const int set = params.by_points.quotient(index);
    read_point<T>(params, image, set, index - set * params.points_per_set, x, y);
  };
  const auto reaches = [](const BilinearTaps<F>& tap, int first, int end) {
    bool some = false;
    for (int i = 0; i < 4; ++i)
      some = some || (tap.indices.corner[i] >= first && tap.indices.corner[i] < end);
    return some;
  };

  const int count = params.sets * params.points_per_set;
  for (int first = 0; first < count; first += kPoolThreads) {
    const int index = first + static_cast<int>(threadIdx.x);
    bool hit = false;
    if (index < count) {
      F x, y;
      read(index, x, y);
      hit = reaches(feature_taps(params, x, y), tile_first, tile_end);
    }
    if (!__syncthreads_count(hit)) continue;

    // Queue the hits in their order.
    const UInt32 ballot = __ballot_sync(kFullWarp, hit);
    if (lane == 0) hits[warp] = __popc(ballot);
    __syncthreads();
    int position = __popc(ballot & ((1u << lane) - 1)), queued = 0;
    for (int w = 0; w < kPoolWarps; ++w) {
      if (w < warp) position += hits[w];
      queued += hits[w];
    }
    if (hit) queue[position] = index;
    __syncthreads();

    // Every warp takes from the queue what reaches its own pixels: lanes sample the masks of
    // different instances, then all lanes add, a channel each.
    for (int i = 0; i < queued; ++i) {
      F x, y;
      read(queue[i], x, y);
      const BilinearTaps<F> tap = feature_taps(params, x, y);
      if (!reaches(tap, own_first, own_end)) continue;  // the same for all lanes
      const int set = params.by_points.quotient(queue[i]);
      const PointOnMap<F, int> on_masks = point_on_masks(params, x, y);
      F gradient = 0;
      for (int group = 0; group < params.instances; group += kWarp) {
        const int instance = group + lane;
        F scaled = 0;
        if (instance < params.instances && image_of(params, instance) == image)
          scaled =
              sample_mask_of(params, instance, on_masks) * gradient_scale<F>(params, instance, set);
        for (UInt32 left = __ballot_sync(kFullWarp, scaled != 0); left; left &= left - 1) {
          const int source = __ffs(static_cast<int>(left)) - 1;
          const F factor = __shfl_sync(kFullWarp, scaled, source);
          if (channel < params.channels)
            gradient +=
                factor * to_arithmetic(static_cast<const T*>(
                             params.grad_pooled)[(group + source) * params.pooled_strides[0] +
                                                 set * params.pooled_strides[1] +
                                                 channel * params.pooled_strides[2]]);
        }
      }
#pragma unroll
      for (int corner = 0; corner < 4; ++corner)
        if (tap.indices.corner[corner] >= own_first && tap.indices.corner[corner] < own_end)
          own[(tap.indices.corner[corner] - own_first) * kPoolOrderedChannels] +=
              tap.weight[corner] * gradient;
    }
  }

  if (channel >= params.channels) return;
  T* const to = static_cast<T*>(params.grad_features) + image * params.features_strides[0] +
                channel * params.features_strides[1];
  for (int pixel = own_first; pixel < own_end; ++pixel)
    from_arithmetic(own[(pixel - own_first) * kPoolOrderedChannels],
                    *pixel_at<false>(params, to, pixel));
}

}  // namespace alignmask
